"""A rate network ends in a softplus written by hand, log(1 + exp(x)), and exp overflows."""

from __future__ import annotations

import torch
from torch import nn

OP = ("exp",)
PHASE = "forward"
MODULE = "3"
STEP = 4
CAUSE = ("softplus", "log1p", "logaddexp")


class Softplus(nn.Module):
    def forward(self, x):
        return torch.log(1 + torch.exp(x))  # culprit


def build(last: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1), last)
    with torch.no_grad():
        for p in net.parameters():
            p.abs_()
    return net


def fit(net: nn.Sequential) -> list[float]:
    torch.manual_seed(2)
    x = torch.rand(24, 3)
    x[13] = 400.0  # a traffic spike, in the fourth batch of four rows
    counts = torch.poisson(2 * torch.ones(24, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5)
    out = []
    for rows in torch.arange(24).split(4):
        rate = net(x[rows])
        loss = (rate - counts[rows] * torch.log(rate + 1e-6)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    return out


def test_broken() -> None:
    fit(build(Softplus()))


def test_healthy() -> None:
    losses = fit(build(nn.Softplus()))
    assert torch.tensor(losses).isfinite().all()
