"""A regressor over a table of numbers."""

from __future__ import annotations

from torch import Tensor, nn


class TabularRegressor(nn.Module):
    """A small perceptron: rows [batch, features] to predictions [batch]."""

    def __init__(self, features: int, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """float[batch, features] -> float[batch]."""
        return self.layers(rows).squeeze(-1)


def regression_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of one batch of (rows, targets)."""
    rows, targets = batch
    return (model(rows) - targets).square().mean()
