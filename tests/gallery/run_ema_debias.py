"""Bias-corrected weight EMA whose update counter never advances: 1 - decay ** 0 is zero when swapped in for eval."""

from __future__ import annotations

import copy

import torch
from torch import nn

OP = ("div",)
PHASE = "eval"
MODULE = None
STEP = None
CAUSE = ("zero", "divi")


class WeightEMA:
    count_updates = False

    def __init__(self, model: nn.Module, decay: float = 0.9) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        if self.count_updates:
            self.updates += 1
        for name, p in model.named_parameters():
            self.shadow[name].lerp_(p, 1.0 - self.decay)

    @torch.no_grad()
    def averaged(self, model: nn.Module) -> nn.Module:
        clone = copy.deepcopy(model)
        correction = 1.0 - self.decay**self.updates
        for name, p in clone.named_parameters():
            p.copy_(self.shadow[name] / correction)  # culprit
        return clone.eval()


class CountingEMA(WeightEMA):
    count_updates = True


def experiment(ema_cls: type[WeightEMA]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(10)
    student = nn.Sequential(nn.Linear(3, 5), nn.ELU(), nn.Linear(5, 1))
    ema = ema_cls(student)
    opt = torch.optim.Adam(student.parameters(), lr=1e-2)
    x = torch.randn(12, 3)
    for _ in range(4):
        opt.zero_grad()
        nn.functional.mse_loss(student(x), x[:, :1].sin()).backward()
        opt.step()
        ema.update(student)
    teacher = ema.averaged(student)
    with torch.no_grad():
        return student, teacher(x)


def test_broken() -> None:
    experiment(WeightEMA)


def test_healthy() -> None:
    student, predictions = experiment(CountingEMA)
    assert predictions.isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in student.parameters())
