"""A running feature scaler that is only updated when `track` is on: in eval it divides a zero sum by a zero count."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

OP = ("div",)
PHASE = "eval"
MODULE = "stem.centre"
STEP = None
CAUSE = ("zero", "divi", "count", "buffer")


class RunningCentre(nn.Module):
    def __init__(self, features: int, track: bool) -> None:
        super().__init__()
        self.track = track
        self.register_buffer("total", torch.zeros(features))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            if self.track:
                self.total += x.detach().sum(dim=0)
                self.count += x.shape[0]
            return x - x.mean(dim=0)
        return x - self.total / self.count  # culprit


class Stem(nn.Module):
    def __init__(self, track: bool) -> None:
        super().__init__()
        self.centre = RunningCentre(4, track)
        self.expand = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.expand(self.centre(x)))


def build(track=False) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(OrderedDict(stem=Stem(track), head=nn.Linear(8, 1)))


@torch.no_grad()
def evaluate(model: nn.Module) -> torch.Tensor:
    return nn.functional.mse_loss(model.eval()(torch.ones(3, 4)), torch.zeros(3, 1))


def fit(model: nn.Module) -> nn.Module:
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(4):
        x = torch.randn(10, 4) + 3
        opt.zero_grad()
        nn.functional.mse_loss(model(x), x[:, :1]).backward()
        opt.step()
    return model


def test_broken() -> None:
    evaluate(fit(build()))


def test_healthy() -> None:
    model = fit(build(track=True))
    assert evaluate(model).isfinite()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
