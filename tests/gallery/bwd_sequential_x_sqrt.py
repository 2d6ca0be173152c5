"""A Sequential with a signed x ** 1.5 activation, x * sqrt(|x|): zero times an infinite derivative."""

from __future__ import annotations

import torch
from torch import nn

OP = ("sqrt",)
PHASE = "backward"
MODULE = "1"
STEP = 1
CAUSE = ("zero", "sqrt")


def grid():
    x = torch.linspace(-1, 1, 15).view(5, 3)
    x[2] = 0.0
    return x, x.sum(dim=1, keepdim=True).sin()


class Power32(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sqrt(x.abs())  # culprit


class Power32Stable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.square() + 1e-6).pow(0.25)


def mlp(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(12)
    return nn.Sequential(nn.Linear(3, 7, bias=False), activation, nn.Linear(7, 7), nn.Softplus(), nn.Linear(7, 1))


def test_broken() -> None:
    net = mlp(Power32())
    x, y = grid()
    opt = torch.optim.Adagrad(net.parameters(), lr=0.05)
    for _epoch in range(4):
        opt.zero_grad()
        loss = nn.functional.smooth_l1_loss(net(x), y)
        loss.backward()
        opt.step()


def test_healthy() -> None:
    net = mlp(Power32Stable())
    x, y = grid()
    opt = torch.optim.Adagrad(net.parameters(), lr=0.05)
    for _epoch in range(4):
        opt.zero_grad()
        loss = nn.functional.smooth_l1_loss(net(x), y)
        loss.backward()
        opt.step()
        assert loss.isfinite()
        assert all(p.isfinite().all() and p.grad.isfinite().all() for p in net.parameters())
