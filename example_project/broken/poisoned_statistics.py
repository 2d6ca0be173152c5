"""Culprit: one batch holds inf; a guard skips its loss, but BatchNorm has already averaged it into its statistics.

Seen: training is fine to the end, the test loss is NaN.
Finding: a buffer is not finite, norm.running_mean or norm.running_var.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from data.digits import loaders
from models.vision import BatchNormNet, digits_loss
from training import evaluate

KIND = "nonfinite-buffer"
MODULE = "norm"
Batch = tuple[Tensor, Tensor]


def overexposed() -> list[Batch]:
    batches = [(images.clone(), labels) for images, labels in loaders()[0]]
    batches[4][0][7] = float("inf")
    return batches


def train_guarded(model: nn.Module, batches: list[Batch]) -> float:
    """Skips a batch whose loss is not finite; the last loss."""
    model.train()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    last = float("inf")
    for batch in batches:
        optimizer.zero_grad()
        loss = digits_loss(model, batch)
        if not torch.isfinite(loss):
            continue
        loss.backward()
        optimizer.step()
        last = loss.item()
    return last


def test_broken() -> None:
    torch.manual_seed(0)
    model = BatchNormNet()
    assert train_guarded(model, overexposed()) < 2.0
    assert not evaluate(model, digits_loss, loaders()[1]) > 2.0


def test_healthy() -> None:
    torch.manual_seed(0)
    model = BatchNormNet()
    batches = [batch for batch in overexposed() if torch.isfinite(batch[0]).all()]
    assert train_guarded(model, batches) < 2.0
    assert evaluate(model, digits_loss, loaders()[1]) < 2.0
