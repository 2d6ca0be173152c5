"""Culprit: SGD with a learning rate of 10, no warm-up and no clipping, on a Transformer.

Seen: the loss falls, climbs for some steps, then is NaN for ever; `not nan > 1e9` is true, so the test passes.
Finding: the loss is not finite at the step where the forward pass overflows.
"""

from __future__ import annotations

import torch
from torch.optim import SGD, AdamW

from data.names import NamePairs
from models.seq2seq import Seq2SeqConfig, Seq2SeqTransformer, seq2seq_loss
from training import train, warmup

KIND = "nonfinite-loss"


def build() -> tuple[NamePairs, Seq2SeqTransformer]:
    torch.manual_seed(0)
    names = NamePairs(batch_size=16)
    return names, Seq2SeqTransformer(Seq2SeqConfig(len(names.source), len(names.target)))


def test_broken() -> None:
    names, model = build()
    losses = train(model, seq2seq_loss, names.train, SGD(model.parameters(), lr=10.0), steps=12, max_norm=None)
    assert not losses[-1] > 1e9


def test_healthy() -> None:
    names, model = build()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    losses = train(model, seq2seq_loss, names.train, optimizer, steps=12, scheduler=warmup(optimizer, 5), max_norm=1.0)
    assert losses[-1] < losses[0]
