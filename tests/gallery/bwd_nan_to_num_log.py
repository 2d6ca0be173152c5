"""Log filter-bank energies: nan_to_num repairs log(0) in the forward pass, and the gradient is lost."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

OP = ("log",)
PHASE = "backward"
MODULE = "features.log"
STEP = 2
CAUSE = ("nan_to_num", "zero", "log of", "eps", "clamp")


class Square(nn.Module):
    def forward(self, x):
        return x * x


class LogCompress(nn.Module):
    def forward(self, energy):
        return torch.nan_to_num(torch.log(energy), neginf=-10.0)  # culprit


class LogCompressFloor(nn.Module):
    def forward(self, energy):
        return torch.log(energy + 4.5e-5)


def build(log: nn.Module) -> nn.Sequential:
    features = nn.Sequential(
        OrderedDict(bank=nn.Conv1d(1, 4, 5, 2, bias=False), power=Square(), log=log, pool=nn.AdaptiveAvgPool1d(3))
    )
    return nn.Sequential(OrderedDict(features=features, flat=nn.Flatten(), fc=nn.Linear(12, 2)))


def fit(model, n_steps=3):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_history = []
    for i in range(n_steps):
        g = torch.Generator().manual_seed(i)
        wave = torch.randn(4, 1, 32, generator=g)
        if i == 1:
            wave[0, 0, 20:] = 0.0  # the recording ends early
        label = torch.randint(0, 2, (4,), generator=g)
        loss = nn.functional.cross_entropy(model(wave), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_history.append(float(loss.detach()))
    return loss_history


def test_broken() -> None:
    torch.manual_seed(0)
    fit(build(LogCompress()))


def test_healthy() -> None:
    torch.manual_seed(0)
    model = build(LogCompressFloor())
    assert torch.tensor(fit(model)).isfinite().all()
    for p in model.parameters():
        assert p.isfinite().all()
        assert p.grad.isfinite().all()
