"""Culprit: torch.where masks sqrt of a negative number; the branch not taken still gives 0 * nan in backward.

Seen: the first loss is fine, the second NaN.
Finding: the gradients are NaN at step 1 under a finite loss; the marker raises it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from data.diabetes import train_and_test
from models.tabular import TabularRegressor, regression_loss
from training import train

KIND = "nonfinite-gradient"
STEP = 1
EXPLICIT = True
pytestmark = pytest.mark.nanstab


class MaskedRoot(TabularRegressor):
    def root(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.sqrt(x), 0.0)  # culprit

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.root(self.layers[0](rows))
        return self.layers[2:](hidden).squeeze(-1)


class SafeRoot(MaskedRoot):
    def root(self, x: Tensor) -> Tensor:
        positive = x > 0
        return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), 0.0)


def train_with(cls: type[MaskedRoot]) -> list[float]:
    torch.manual_seed(0)
    model = cls(features=10)
    return train(model, regression_loss, train_and_test()[0], AdamW(model.parameters(), lr=1e-2), steps=8)


def test_broken() -> None:
    assert len(train_with(MaskedRoot)) == 8


def test_healthy() -> None:
    losses = train_with(SafeRoot)
    assert losses[-1] < losses[0]
