"""Tabular regression with an in-model z-score: a column that is constant within the batch becomes 0/0."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

OP = ("div", "true_divide")
PHASE = "forward"
MODULE = "features.zscore"
STEP = 2
CAUSE = ("constant", "zero", "eps", "std")


class ZScore(nn.Module):
    def __init__(self, eps: float = 0.0) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x):
        mu, sigma = x.mean(dim=0), x.std(dim=0, unbiased=False)
        return (x - mu) / (sigma + self.eps)  # culprit


class Regressor(nn.Module):
    def __init__(self, eps: float = 0.0) -> None:
        super().__init__()
        self.features = nn.ModuleDict({"zscore": ZScore(eps), "season": nn.Embedding(4, 2)})
        self.mlp = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, numeric, season):
        parts = [self.features["zscore"](numeric), self.features["season"](season)]
        return self.mlp(torch.cat(parts, dim=1)).squeeze(-1)


def table():
    rng = np.random.default_rng(3)
    numeric = rng.normal(size=(24, 4)).astype(np.float32)
    numeric[:, 2] = rng.integers(0, 5, size=24)
    numeric[8:16, 2] = 0.0  # no snow in these rows
    return numeric, rng.integers(0, 4, size=24), rng.normal(size=24).astype(np.float32)


def train(model: nn.Module) -> list[float]:
    numeric, season, target = map(torch.from_numpy, table())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for start in range(0, 24, 8):
        rows = slice(start, start + 8)
        optimizer.zero_grad()
        loss = nn.functional.huber_loss(model(numeric[rows], season[rows]), target[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_broken() -> None:
    torch.manual_seed(0)
    train(Regressor())


def test_healthy() -> None:
    torch.manual_seed(0)
    assert np.isfinite(train(Regressor(eps=1e-6))).all()
