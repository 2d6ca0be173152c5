"""Culprit: a batch padded on the left under a causal mask: the first queries of a short text see no key at all.

Seen: softmax over a row of -inf is NaN, and attention carries it from the padding into every position.
Finding: the loss is NaN at step 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import AdamW

from data.names import PAD, NamePairs
from models.seq2seq import Seq2SeqConfig, Seq2SeqTransformer, seq2seq_loss
from training import train

KIND = "nonfinite-loss"
STEP = 1
Batch = tuple[Tensor, Tensor]


def pad_left(batch: Batch) -> Batch:
    source, target = batch
    lengths = (target != PAD).sum(dim=1)
    return source, torch.stack([row.roll(len(row) - int(n)) for row, n in zip(target, lengths, strict=True)])


def train_on(names: NamePairs, batches: list[Batch]) -> list[float]:
    torch.manual_seed(0)
    model = Seq2SeqTransformer(Seq2SeqConfig(len(names.source), len(names.target), layers=2))
    return train(model, seq2seq_loss, batches, AdamW(model.parameters(), lr=3e-3), steps=4)


def test_broken() -> None:
    names = NamePairs(batch_size=16)
    assert len(train_on(names, [pad_left(batch) for batch in names.train])) == 4


def test_healthy() -> None:
    names = NamePairs(batch_size=16)
    losses = train_on(names, names.train)
    assert losses[-1] < losses[0]
