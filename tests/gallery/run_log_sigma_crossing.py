"""Gaussian likelihood with a raw learned sigma: the fit is too good, sigma steps below zero and log(sigma) is NaN."""

from __future__ import annotations

import torch
from torch import nn

OP = ("log",)
PHASE = "forward"
MODULE = "likelihood"
STEP = 13
CAUSE = ("negative", "softplus", "exp", "positive", "clamp")


class Gaussian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.tensor(1.0))

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        quadratic = residual.square() / (2 * self.sigma**2)
        normaliser = self.sigma.log()  # culprit
        return (quadratic + normaliser).mean()


class LogGaussian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(0.0))

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        return (residual.square() * torch.exp(-2 * self.log_sigma) / 2 + self.log_sigma).mean()


class Calibrator(nn.Module):
    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.95))
        self.likelihood = likelihood

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.likelihood(y - self.slope * x)


def calibrate(likelihood: nn.Module, steps: int = 14) -> list[torch.Tensor]:
    model = Calibrator(likelihood)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.linspace(-1, 1, 9)
    seen = []
    for _ in range(steps):
        nll = model(x, 1.0 * x)
        opt.zero_grad()
        nll.backward()
        opt.step()
        seen.append(nll.detach())
        seen.extend(t.detach().clone() for p in model.parameters() for t in (p, p.grad))
    return seen


def test_broken() -> None:
    calibrate(Gaussian())


def test_healthy() -> None:
    assert all(t.isfinite().all() for t in calibrate(LogGaussian()))
