"""A checkpointed block takes the square root of everything and masks the negative entries only afterwards."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

OP = ("sqrt",)
PHASE = "backward"
MODULE = "blocks.1.act"
STEP = 1
CAUSE = ("where", "mask", "sqrt")


class RootUnit(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, torch.sqrt(x), torch.zeros_like(x))  # culprit


class SafeRootUnit(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, torch.sqrt(x.clamp_min(1e-6)), torch.zeros_like(x))


class Block(nn.Module):
    def __init__(self, width, act):
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.act = act

    def forward(self, x):
        return x + self.act(self.fc(x))


class Net(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.blocks = nn.ModuleList([Block(8, nn.GELU()), Block(8, act), Block(8, nn.GELU())])
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.out(x).squeeze(-1)


def train(act):
    torch.manual_seed(3)
    net = Net(act)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(3):
        x = torch.randn(6, 5)
        loss = (net(x) - x.sum(1)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net, loss


def test_broken() -> None:
    train(RootUnit())


def test_healthy() -> None:
    net, loss = train(SafeRootUnit())
    assert loss.isfinite()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in net.parameters())
