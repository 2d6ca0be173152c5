"""Linear warmup through LambdaLR with warmup_steps=0: the factor of the first step is 0 / 0."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

OP = ("add", "add_", "SGD", "mul")
PHASE = "optimizer"
MODULE = None
STEP = 1
CAUSE = ("lr", "learning rate", "warmup", "schedul")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(signal).relu().mean(-1))


def configure(model: nn.Module, warmup_steps: int):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    warmup = np.float64(warmup_steps)
    scheduler = LambdaLR(optimizer, lambda step: float(np.minimum(1.0, np.float64(step) / warmup)))  # culprit
    return optimizer, scheduler


def configure_fixed(model: nn.Module, warmup_steps: int):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return optimizer, LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup_steps)))


def run(configure_fn) -> bool:
    torch.manual_seed(4)
    model = Tiny()
    optimizer, scheduler = configure_fn(model, warmup_steps=0)
    ok = True
    for _ in range(3):
        signal, label = torch.randn(6, 2, 9), torch.randint(0, 2, (6,))
        loss = nn.functional.cross_entropy(model(signal), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        ok = ok and bool(loss.isfinite()) and all(bool(p.grad.isfinite().all()) for p in model.parameters())
    return ok and all(bool(p.isfinite().all()) for p in model.parameters())


def test_broken() -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        run(configure)


def test_healthy() -> None:
    assert run(configure_fixed)
