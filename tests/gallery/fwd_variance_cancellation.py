"""Per-batch standardisation computes the variance as E[x^2] - E[x]^2 and takes the square root of a negative number."""

from __future__ import annotations

import torch
from torch import nn

OP = ("sqrt",)
PHASE = "forward"
MODULE = "standardise"
STEP = 1
CAUSE = ("cancel", "negative", "var")


class Standardise(nn.Module):
    def forward(self, x):
        mean = x.mean(dim=0)
        var = (x * x).mean(dim=0) - mean * mean
        std = torch.sqrt(var)  # culprit
        return (x - mean) / (std + 1e-3)


class TwoPassStandardise(nn.Module):
    def forward(self, x):
        centred = x - x.mean(dim=0)
        return centred / (centred.square().mean(dim=0) + 1e-6).sqrt()


class PressureModel(nn.Module):
    """Predicts the weather from barometer readings in hectopascal."""

    def __init__(self, standardise: nn.Module, channels: int = 48) -> None:
        super().__init__()
        self.calibrate = nn.Linear(channels, channels)
        nn.init.eye_(self.calibrate.weight)
        nn.init.zeros_(self.calibrate.bias)
        self.standardise = standardise
        self.readout = nn.Linear(channels, 1)

    def forward(self, x):
        return self.readout(self.standardise(self.calibrate(x)))


def training_run(model: nn.Module, steps: int = 3):
    gen = torch.Generator().manual_seed(11)
    opt = torch.optim.SGD(model.parameters(), lr=1e-9)
    for _ in range(steps):
        x = 1013.0 + 0.01 * torch.randn(16, 48, generator=gen)
        y = torch.randn(16, 1, generator=gen)
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        yield loss.item()


def test_broken() -> None:
    torch.manual_seed(0)
    for _ in training_run(PressureModel(Standardise())):
        pass


def test_healthy() -> None:
    torch.manual_seed(0)
    model = PressureModel(TwoPassStandardise())
    assert all(value < 1e6 for value in training_run(model))
    assert all(p.isfinite().all() for p in model.parameters())
