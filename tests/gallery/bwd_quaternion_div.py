"""Camera poses start at the identity rotation, and sin(theta / 2) / theta is 0 / 0 behind a where."""

from __future__ import annotations

import torch
from torch import nn

OP = ("div",)
PHASE = "backward"
MODULE = "rotation"
STEP = 1
CAUSE = ("where", "mask", "zero", "denominator")


class RotVecToQuat(nn.Module):
    """Exponential map from a rotation vector to a unit quaternion (w, x, y, z)."""

    def forward(self, rotvec):
        theta = torch.linalg.vector_norm(rotvec, dim=-1, keepdim=True)
        k = torch.where(theta > 1e-8, torch.sin(0.5 * theta) / theta, torch.full_like(theta, 0.5))  # culprit
        return torch.cat([torch.cos(0.5 * theta), k * rotvec], dim=-1)


class RotVecToQuatSinc(nn.Module):
    def forward(self, rotvec):
        theta = torch.linalg.vector_norm(rotvec, dim=-1, keepdim=True)
        k = 0.5 * torch.sinc(0.5 * theta / torch.pi)
        return torch.cat([torch.cos(0.5 * theta), k * rotvec], dim=-1)


def rotate(q, v):
    w, u = q[..., :1], q[..., 1:]
    t = 2 * torch.linalg.cross(u.expand_as(v), v)
    return v + w * t + torch.linalg.cross(u.expand_as(v), t)


class PoseRefiner(nn.Module):
    def __init__(self, n_cameras, rotation):
        super().__init__()
        self.rotvec = nn.Parameter(torch.zeros(n_cameras, 3))
        self.shift = nn.Parameter(torch.zeros(n_cameras, 3))
        self.rotation = rotation

    def forward(self, camera, points):
        return rotate(self.rotation(self.rotvec[camera]), points) + self.shift[camera]


def refine(rotation, iters=5):
    gen = torch.Generator().manual_seed(11)
    refiner = PoseRefiner(3, rotation)
    opt = torch.optim.Adam(refiner.parameters(), lr=0.01)
    points, camera = torch.randn(12, 3, generator=gen), torch.arange(12) % 3
    for _ in range(iters):
        opt.zero_grad()
        loss = nn.functional.huber_loss(refiner(camera, points), points.roll(1, dims=1) + 0.1)
        loss.backward()
        opt.step()
    return refiner, loss


def test_broken() -> None:
    refine(RotVecToQuat())


def test_healthy() -> None:
    refiner, loss = refine(RotVecToQuatSinc())
    assert loss.isfinite()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in refiner.parameters())
