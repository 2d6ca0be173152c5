"""Under float16 autocast the first linear layer casts raw amounts of money, beyond 65504, to infinity."""

from __future__ import annotations

import torch
from torch import nn

OP = ("linear", "addmm", "to", "_to_copy")
PHASE = "forward"
MODULE = "tower.0"
STEP = 2
CAUSE = ("float16", "half", "65504", "autocast")


class Scorer(nn.Module):
    def __init__(self, *, normalise: bool = False) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        self.normalise = normalise

    def forward(self, amounts):
        if self.normalise:
            amounts = torch.log1p(amounts)
        return self.tower(amounts).squeeze(-1)  # culprit


LOANS = [
    ([[1200.0, 300.0, 20.0], [900.0, 10.0, 5.0]], [0.0, 1.0]),
    ([[2500.0, 120.0, 8.0], [350000.0, 80.0, 30.0]], [1.0, 0.0]),
    ([[700.0, 70.0, 7.0], [1500.0, 150.0, 15.0]], [1.0, 1.0]),
]


def fit(model: nn.Module) -> list[float]:
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    bce = nn.BCEWithLogitsLoss()
    curve = []
    for amounts, default in LOANS:
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(torch.tensor(amounts))
        loss = bce(logits.float(), torch.tensor(default))
        opt.zero_grad()
        loss.backward()
        opt.step()
        curve.append(loss.item())
    return curve


def test_broken() -> None:
    torch.manual_seed(0)
    fit(Scorer())


def test_healthy() -> None:
    torch.manual_seed(0)
    assert torch.tensor(fit(Scorer(normalise=True))).isfinite().all()
