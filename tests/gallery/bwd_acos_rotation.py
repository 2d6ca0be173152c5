"""The geodesic rotation loss takes acos of a trace that is exactly one when the prediction is the target."""

from __future__ import annotations

import torch
from torch import nn

OP = ("acos",)
PHASE = "backward"
MODULE = ""
STEP = 1
CAUSE = ("clamp", "[-1, 1]", "1", "atan2")


def yaw_matrix(angle):
    c, s, o, i = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, -s, o, s, c, o, o, o, i], dim=-1).view(-1, 3, 3)


class GeodesicLoss(nn.Module):
    def forward(self, pred, target):
        trace = (pred * target).sum(dim=(-2, -1))
        angle = torch.acos((trace - 1) / 2)  # culprit
        return angle.mean()


class ChordalLoss(nn.Module):
    def forward(self, pred, target):
        return (pred - target).square().sum(dim=(-2, -1)).mean()


class YawNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.yaw = nn.Linear(8, 1)
        nn.init.zeros_(self.yaw.weight)  # start from "not turned"
        nn.init.zeros_(self.yaw.bias)

    def forward(self, x):
        return yaw_matrix(self.yaw(self.body(x)).squeeze(-1))


def step(model, criterion, opt, x, target):
    loss = criterion(model(x), target)
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss.item()


def setup():
    torch.manual_seed(2)
    model = YawNet()
    x = torch.randn(4, 6)
    target = yaw_matrix(torch.tensor([0.0, 0.4, -0.3, 1.0]))
    return model, torch.optim.Adam(model.parameters(), lr=1e-2), x, target


def test_broken() -> None:
    model, opt, x, target = setup()
    for _ in range(3):
        step(model, GeodesicLoss(), opt, x, target)


def test_healthy() -> None:
    model, opt, x, target = setup()
    losses = [step(model, ChordalLoss(), opt, x, target) for _ in range(3)]
    assert torch.tensor(losses).isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
