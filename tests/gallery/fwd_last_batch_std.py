"""A variance regulariser takes the unbiased std over the batch, and the last batch of the epoch has one row."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

OP = ("std",)
PHASE = "forward"
MODULE = None
STEP = 3
CAUSE = ("one", "single", "unbiased", "correction", "degrees of freedom")


def invariance(a, b):
    return (a - b).square().mean()


def variance(z):
    std = z.std(dim=0)  # culprit
    return torch.relu(1.0 - std).mean()


class SelfSupervised:
    def __init__(self, *, drop_last: bool) -> None:
        torch.manual_seed(6)
        self.projector = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 5))
        self.loader = DataLoader(TensorDataset(torch.randn(9, 7)), batch_size=4, drop_last=drop_last)
        self.optimizer = torch.optim.SGD(self.projector.parameters(), lr=0.05)
        self.losses: list[float] = []

    def training_step(self, x):
        za = self.projector(x + 0.1 * torch.randn_like(x))
        zb = self.projector(x + 0.1 * torch.randn_like(x))
        return invariance(za, zb) + variance(za) + variance(zb)

    def fit(self, epochs: int):
        for _ in range(epochs):
            for (x,) in self.loader:
                loss = self.training_step(x)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.losses.append(loss.item())
        return self


def test_broken() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch mentions the degrees of freedom
        SelfSupervised(drop_last=False).fit(epochs=2)


def test_healthy() -> None:
    run = SelfSupervised(drop_last=True).fit(epochs=2)
    assert torch.tensor(run.losses).isfinite().all()
