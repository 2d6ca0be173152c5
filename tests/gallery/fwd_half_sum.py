"""A float16 autoencoder sums its squared error over all pixels in float16, beyond 65504."""

from __future__ import annotations

import torch
from torch import nn

OP = ("sum",)
PHASE = "forward"
MODULE = None
STEP = 2
CAUSE = ("float16", "half", "65504", "overflow")


def autoencoder() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64))


def images() -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(17)
    dark = torch.rand(32, 64, generator=gen)
    bright = 8.0 + torch.rand(32, 64, generator=gen)
    return [dark.half(), bright.half(), dark.flip(0).half()]


def sum_of_squares(pred, target):
    err = (pred - target) ** 2
    return err.sum()  # culprit


def sum_of_squares_fp32(pred, target):
    err = (pred - target).float() ** 2
    return err.sum()


def test_broken() -> None:
    torch.manual_seed(0)
    net = autoencoder().half()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    for batch in images():
        loss = sum_of_squares(net(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_healthy() -> None:
    torch.manual_seed(0)
    net = autoencoder().half()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    for batch in images():
        loss = sum_of_squares_fp32(net(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
