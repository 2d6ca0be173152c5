"""RMS normalisation whose gain is allocated with torch.empty and never set; NaN stands for what memory contained."""

from __future__ import annotations

import torch
from torch import nn

OP = ("empty", "fill_", "Parameter", "mul")
PHASE = "forward"
MODULE = "blocks.0.norm"
STEP = 1
CAUSE = ("uninitiali", "parameter", "gain", "initiali")


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = self.make_gain(dim)

    def make_gain(self, dim: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(dim).fill_(float("nan")))  # culprit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * self.gain


class InitialisedRMSNorm(RMSNorm):
    def make_gain(self, dim: int) -> nn.Parameter:
        return nn.Parameter(torch.ones(dim))


class Block(nn.Module):
    def __init__(self, dim: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


class Backbone(nn.Module):
    def __init__(self, norm_cls, dim: int = 4) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(dim, norm_cls(dim)), Block(dim, InitialisedRMSNorm(dim)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


def train(norm_cls: type[RMSNorm]) -> tuple[Backbone, torch.Tensor]:
    torch.manual_seed(0)
    net, x = Backbone(norm_cls), torch.randn(6, 4)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(3):
        opt.zero_grad()
        loss = (net(x) - x.roll(1, dims=1)).pow(2).mean()
        loss.backward()
        opt.step()
    return net, loss.detach()


def test_broken() -> None:
    train(RMSNorm)


def test_healthy() -> None:
    net, loss = train(InitialisedRMSNorm)
    assert loss.isfinite()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in net.parameters())
