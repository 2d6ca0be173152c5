"""Culprit: the last batch is filled up to full size with empty target rows; their queries see no key under the mask.

Seen: the loss ignores the empty rows, so it is a number; the gradients are NaN all the same, and so is the next loss.
Finding: the gradients are NaN at step 2 under a finite loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import AdamW

from data.names import PAD, NamePairs
from models.seq2seq import Seq2SeqConfig, Seq2SeqTransformer, seq2seq_loss
from training import train

KIND = "nonfinite-gradient"
STEP = 2


def filled_up(batch: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, Tensor]:
    source, target = batch
    missing = size - len(source)
    padding = torch.full((missing, target.shape[1]), PAD)
    return torch.cat([source, source[:missing]]), torch.cat([target, padding])  # culprit


def train_on_two(*, fill: bool) -> list[float]:
    torch.manual_seed(0)
    names = NamePairs(batch_size=16)
    short = tuple(ids[:10] for ids in names.train[1])
    model = Seq2SeqTransformer(Seq2SeqConfig(len(names.source), len(names.target)))
    batches = [names.train[0], filled_up(short, size=16) if fill else short]
    return train(model, seq2seq_loss, batches, AdamW(model.parameters(), lr=3e-3), steps=4)


def test_broken() -> None:
    assert train_on_two(fill=True)[1] < 10


def test_healthy() -> None:
    losses = train_on_two(fill=False)
    assert losses[-1] < losses[0]
