"""Culprit: gradients are clipped before backward() makes them, as widely read tutorials show it.

Seen: nothing. No error, and the loss stays finite; the bound simply does not hold.
Finding: the clip has no effect, at the clip call.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW

from data.names import NamePairs
from models.seq2seq import Seq2SeqConfig, Seq2SeqTransformer, seq2seq_loss

KIND = "ineffective-clip"


def build() -> tuple[NamePairs, Seq2SeqTransformer, AdamW]:
    torch.manual_seed(0)
    names = NamePairs(batch_size=16)
    model = Seq2SeqTransformer(Seq2SeqConfig(len(names.source), len(names.target)))
    return names, model, AdamW(model.parameters(), lr=1e-3)


def test_broken() -> None:
    names, model, optimizer = build()
    for batch in names.train[:6]:
        optimizer.zero_grad()
        loss = seq2seq_loss(model, batch)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # culprit
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)


def test_healthy() -> None:
    names, model, optimizer = build()
    for batch in names.train[:6]:
        optimizer.zero_grad()
        loss = seq2seq_loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
    assert torch.isfinite(loss)
