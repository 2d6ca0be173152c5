"""Culprit: the mean over the labelled images of a batch that has none.

Seen: one NaN among good losses; the step of this batch is lost, and the mean loss of the epoch is NaN.
Finding: the loss is NaN at step 3, though the gradients it leaves are all zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from data.digits import loaders
from models.vision import ConvNet
from training import train

KIND = "nonfinite-loss"
STEP = 3
UNLABELLED = -100


def semi_supervised() -> list[tuple[Tensor, Tensor]]:
    batches = [(images, labels.clone()) for images, labels in loaders()[0]]
    for _, labels in batches:
        labels[::2] = UNLABELLED
    batches[2][1][:] = UNLABELLED
    return batches


def mean_over_labelled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels, ignore_index=UNLABELLED)  # culprit


def sum_over_count(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    total = F.cross_entropy(model(images), labels, ignore_index=UNLABELLED, reduction="sum")
    return total / (labels != UNLABELLED).sum().clamp(min=1)


def test_broken() -> None:
    torch.manual_seed(0)
    model = ConvNet()
    losses = train(model, mean_over_labelled, semi_supervised(), AdamW(model.parameters(), lr=3e-3), steps=6)
    assert losses[1] < 100


def test_healthy() -> None:
    torch.manual_seed(0)
    model = ConvNet()
    losses = train(model, sum_over_count, semi_supervised(), AdamW(model.parameters(), lr=3e-3), steps=6)
    assert losses[-1] < losses[0]
