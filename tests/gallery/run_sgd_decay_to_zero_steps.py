"""Nesterov SGD with a hand-written numpy schedule that divides by the number of steps left, zero at the last step."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

OP = ("add", "add_", "_foreach_add_", "SGD", "mul")
PHASE = "optimizer"
MODULE = None
STEP = 5
CAUSE = ("lr", "learning rate")

TOTAL = 5


def harmonic_broken(optimizer: torch.optim.Optimizer, step: int, base: float) -> None:
    remaining = np.float32(TOTAL - step)
    with np.errstate(divide="ignore"):
        for group in optimizer.param_groups:
            group["lr"] = float(base / remaining)  # culprit


def harmonic(optimizer: torch.optim.Optimizer, step: int, base: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = float(base / np.float32(TOTAL - step + 1))


def train(schedule) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, foreach=True)
    x = torch.randn(16, 4)
    y = x.sum(1, keepdim=True)
    losses = []
    for step in range(1, TOTAL + 3):
        if step <= TOTAL:
            schedule(optimizer, step, 0.01)
        optimizer.zero_grad()
        loss = nn.functional.smooth_l1_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def test_broken() -> None:
    train(harmonic_broken)


def test_healthy() -> None:
    model, losses = train(harmonic)
    assert np.isfinite(losses).all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
