"""Culprit: a group-lasso penalty sqrt(sum(w^2)) over rows that start at zero; the slope of sqrt at 0 is infinite.

Seen: the first loss is fine, the second NaN.
Finding: the gradients are NaN at step 1 under a finite loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from data.diabetes import train_and_test
from models.tabular import TabularRegressor, regression_loss
from training import train

KIND = "nonfinite-gradient"
STEP = 1


def row_norms(weight: Tensor) -> Tensor:
    return torch.sqrt(weight.square().sum(dim=1))  # culprit


def safe_row_norms(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=1)


def lasso_loss(model: TabularRegressor, batch: tuple[Tensor, Tensor], *, safe: bool) -> Tensor:
    norms = safe_row_norms if safe else row_norms
    return regression_loss(model, batch) + 0.01 * sum(norms(m.weight).sum() for m in model.layers[::2])


def train_with(*, safe: bool) -> list[float]:
    torch.manual_seed(0)
    model = TabularRegressor(features=10)
    nn.init.zeros_(model.layers[-1].weight)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    return train(model, lambda net, batch: lasso_loss(net, batch, safe=safe), train_and_test()[0], optimizer, steps=5)


def test_broken() -> None:
    assert len(train_with(safe=False)) == 5


def test_healthy() -> None:
    losses = train_with(safe=True)
    assert losses[-1] < losses[0]
