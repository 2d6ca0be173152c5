"""Day length from latitude: acos is evaluated outside [-1, 1] for polar stations and masked by where afterwards."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

OP = ("acos",)
PHASE = "backward"
MODULE = "daylight"
STEP = 3
CAUSE = ("where", "mask", "clamp", "domain", "[-1, 1]")


class DayLength(nn.Module):
    def __init__(self, safe: bool):
        super().__init__()
        self.tilt, self.safe = nn.Parameter(torch.tensor(0.40)), safe

    def forward(self, latitude, season):
        decl = self.tilt * torch.sin(season)
        c, polar = -torch.tan(latitude) * torch.tan(decl), torch.pi * (latitude * decl > 0).float()
        inside = c.abs() < 1
        if self.safe:
            c = torch.where(inside, c, torch.zeros_like(c))
        hours = torch.acos(c)  # culprit
        return torch.where(inside, hours, polar) / torch.pi


class YieldModel(nn.Module):
    def __init__(self, safe: bool):
        super().__init__()
        self.daylight = DayLength(safe)
        self.mlp = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, batch):
        features = [self.daylight(batch["lat"], batch["season"]), batch["rain"]]
        return self.mlp(torch.stack(features, dim=1)).squeeze(1)


def stations():
    rng = np.random.default_rng(4)
    for week in range(4):
        lat = rng.uniform(-50, 50, size=5)
        lat[1] = [41.4, -33.9, 78.2, 1.3][week]
        table = {"lat": np.deg2rad(lat), "season": rng.uniform(1.2, 1.9, 5), "rain": rng.random(5), "y": rng.random(5)}
        yield {k: torch.from_numpy(v.astype("float32")) for k, v in table.items()}


def fit(safe=False):
    torch.manual_seed(0)
    model = YieldModel(safe)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in stations():
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(batch), batch["y"])
        loss.backward()
        opt.step()
    return loss, model


def test_broken() -> None:
    fit()


def test_healthy() -> None:
    loss, model = fit(safe=True)
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() and p.isfinite().all() for p in model.parameters())
