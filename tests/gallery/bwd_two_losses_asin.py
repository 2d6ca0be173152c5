"""Two summed losses on sphere points: the latitude term takes asin(z) of a point at the south pole."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

OP = ("asin",)
PHASE = "backward"
MODULE = "to_latlon"
STEP = 1
CAUSE = ("clamp", "-1", "[-1, 1]", "atan2")


class ToLatLon(nn.Module):
    def forward(self, xyz):
        x, y, z = xyz.unbind(-1)
        lat = torch.asin(z)  # culprit
        lon = torch.atan2(y, x)
        return lat, lon


class ToLatLonStable(nn.Module):
    def forward(self, xyz):
        x, y, z = xyz.unbind(-1)
        flat = (x * x + y * y + 1e-8).sqrt()
        return torch.atan2(z, flat), torch.atan2(y, x)


class Sphere(nn.Module):
    def __init__(self, start, to_latlon):
        super().__init__()
        self.points = nn.Parameter(start.clone())
        self.to_latlon = to_latlon

    def forward(self):
        unit = functional.normalize(self.points, dim=-1)
        return unit, self.to_latlon(unit)


START = torch.tensor([[1.0, 0.5, 0.2], [0.3, -1.0, 0.4], [0.0, 0.0, -2.0]])
WANTED_LAT = torch.tensor([0.1, 0.2, -1.2])


def optimise(to_latlon):
    sphere = Sphere(START, to_latlon)
    opt = torch.optim.SGD(sphere.parameters(), lr=0.1)
    trace = []
    for _ in range(4):
        unit, (lat, _lon) = sphere()
        spread = -torch.cdist(unit[:1], unit[1:]).mean()
        latitude = functional.mse_loss(lat, WANTED_LAT)
        loss = spread + latitude
        opt.zero_grad()
        loss.backward()
        opt.step()
        trace.append((loss.detach(), sphere.points.grad.clone(), sphere.points.detach().clone()))
    return trace


def test_broken() -> None:
    assert len(optimise(ToLatLon())) == 4


def test_healthy() -> None:
    for tensors in optimise(ToLatLonStable()):
        assert all(t.isfinite().all() for t in tensors)
