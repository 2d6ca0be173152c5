"""Pose estimation: the rotation angle is acos((trace - 1) / 2) of a product that is not quite a rotation."""

from __future__ import annotations

import torch
from torch import nn

OP = ("acos", "arccos")
PHASE = "forward"
MODULE = ""
STEP = 2
CAUSE = ("[-1, 1]", "outside", "domain", "clamp", "atan2")


class GeodesicLoss(nn.Module):
    def forward(self, pred, target):
        rel = pred.transpose(1, 2) @ target
        trace = rel.diagonal(dim1=1, dim2=2).sum(dim=1)
        return torch.acos((trace - 1) / 2).mean()  # culprit


class SafeGeodesicLoss(nn.Module):
    def forward(self, pred, target):
        rel = pred.transpose(1, 2) @ target
        cos = (rel.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2
        return torch.acos(cos.clamp(-1 + 1e-6, 1 - 1e-6)).mean()


def rotation_z(angle):
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], dim=-1).view(-1, 3, 3)


class PoseNet(nn.Module):
    """Regresses the nine entries of a rotation matrix around a neutral pose."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 9)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, feats):
        return 0.98 * torch.eye(3) + self.fc(feats).view(-1, 3, 3)


def train_pose(criterion):
    torch.manual_seed(0)
    net = PoseNet()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    angles = torch.tensor([[1.2, 0.9, 0.7], [0.8, 0.0, 1.1], [0.6, 0.7, 0.8]])
    for row in angles:
        feats = torch.stack([row.cos(), row.sin()], dim=1)
        loss = criterion(net(feats), rotation_z(row))
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net


def test_broken() -> None:
    train_pose(GeodesicLoss())


def test_healthy() -> None:
    net = train_pose(SafeGeodesicLoss())
    assert all(p.isfinite().all() for p in net.parameters())
