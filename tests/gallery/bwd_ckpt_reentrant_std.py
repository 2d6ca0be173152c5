"""A reentrant-checkpointed stage standardises rows with var().sqrt(), and one row is constant."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

OP = ("sqrt",)
PHASE = "backward"
MODULE = "stage.norm"
STEP = 1
CAUSE = ("zero", "sqrt", "eps", "variance")


class RowNorm(nn.Module):
    def __init__(self, eps=1e-5, inside=False):
        super().__init__()
        self.eps, self.inside = eps, inside

    def forward(self, x):
        centred = x - x.mean(dim=-1, keepdim=True)
        var = centred.pow(2).mean(dim=-1, keepdim=True)
        if self.inside:
            return centred / (var + self.eps).sqrt()
        return centred / (var.sqrt() + self.eps)  # culprit


class SensorNet(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.stage = nn.Sequential(OrderedDict(norm=norm, up=nn.Linear(8, 16), act=nn.SiLU(), down=nn.Linear(16, 8)))
        self.readout = nn.Linear(8, 2)

    def forward(self, x):
        return self.readout(checkpoint(self.stage, x * self.gain, use_reentrant=True))


def sensor_batches():
    gen = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(5, 8, generator=gen)
        x[3] = 0.5  # a stuck sensor reports the same value on all channels
        yield x, torch.randint(0, 2, (5,), generator=gen)


def run(norm):
    torch.manual_seed(0)
    net = SensorNet(norm)
    opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for x, y in sensor_batches():
        loss = nn.functional.cross_entropy(net(x), y)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        yield loss, net


def test_broken() -> None:
    for _ in run(RowNorm()):
        pass


def test_healthy() -> None:
    for loss, net in run(RowNorm(inside=True)):
        assert loss.isfinite()
        assert all(p.isfinite().all() and p.grad.isfinite().all() for p in net.parameters())
