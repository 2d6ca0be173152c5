"""Culprit: the variance computed as E[x²] - E[x]²; far from zero that difference is rounding, at times below zero.

Seen: the loss is NaN from the first batch on, although every feature is finite and varies.
Finding: the loss is NaN, born in the root of a negative variance.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import AdamW

from data.diabetes import train_and_test
from models.tabular import TabularRegressor, regression_loss
from training import train

KIND = "nonfinite-loss"
STEP = 1
OFFSET = 20_000.0  # features as a sensor would give them: a large offset, small changes


class OnePassScaled(TabularRegressor):
    def variance(self, rows: Tensor) -> Tensor:
        return rows.square().mean(dim=0) - rows.mean(dim=0).square()

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + OFFSET
        deviation = torch.sqrt(self.variance(rows))  # culprit
        return super().forward((rows - rows.mean(dim=0)) / (deviation + 1e-6))


class TwoPassScaled(OnePassScaled):
    def variance(self, rows: Tensor) -> Tensor:
        return (rows - rows.mean(dim=0)).square().mean(dim=0)


def train_with(cls: type[OnePassScaled]) -> list[float]:
    torch.manual_seed(0)
    model = cls(features=10)
    return train(model, regression_loss, train_and_test()[0], AdamW(model.parameters(), lr=1e-2), steps=8)


def test_broken() -> None:
    assert len(train_with(OnePassScaled)) == 8


def test_healthy() -> None:
    losses = train_with(TwoPassScaled)
    assert losses[-1] < losses[0]
