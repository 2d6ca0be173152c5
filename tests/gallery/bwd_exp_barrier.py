"""A sharp exponential barrier is still finite in float32, but its derivative (sharpness times larger) overflows."""

from __future__ import annotations

import torch
from torch import nn

OP = ("mul", "exp")
PHASE = "backward"
MODULE = "barrier"
STEP = 1
CAUSE = ("overflow", "float32", "large", "exp")


class ExpBarrier(nn.Module):
    """Penalty that explodes once a joint leaves its range."""

    def __init__(self, limit, sharpness=1e4):
        super().__init__()
        self.limit = limit
        self.sharpness = sharpness

    def forward(self, q):
        excess = q.abs() - self.limit
        return torch.exp(self.sharpness * excess).sum(dim=-1)  # culprit


class QuadraticBarrier(ExpBarrier):
    def forward(self, q):
        return self.sharpness * (q.abs() - self.limit).clamp_min(0).square().sum(dim=-1)


class Arm(nn.Module):
    def __init__(self, q0, barrier):
        super().__init__()
        self.q = nn.Parameter(torch.tensor(q0))
        self.barrier = barrier

    def reach(self):
        heading = self.q.cumsum(dim=0)
        return torch.stack([heading.cos().sum(), heading.sin().sum()])

    def forward(self, goal):
        return (self.reach() - goal).square().sum() + self.barrier(self.q)


def solve(barrier):
    arm = Arm([0.3, -0.7, 1.5085], barrier(limit=1.5))
    opt = torch.optim.SGD(arm.parameters(), lr=1e-6)
    record = []
    for _ in range(3):
        opt.zero_grad()
        cost = arm(torch.tensor([1.0, 1.2]))
        cost.backward()
        opt.step()
        record += [cost.detach(), arm.q.grad.clone(), arm.q.detach().clone()]
    return record


def test_broken() -> None:
    solve(ExpBarrier)


def test_healthy() -> None:
    assert all(t.isfinite().all() for t in solve(QuadraticBarrier))
