"""Culprit: a decay over (total - warm-up) steps in a run that is all warm-up: the last factor is 0 / 0.

Seen: every loss of the short run is finite and falls; the weights it leaves are all NaN.
Finding: parameters are NaN after the last step, under a finite loss and finite gradients.
"""

from __future__ import annotations

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from data.digits import loaders
from models.vision import ConvNet, digits_loss
from training import train

KIND = "nonfinite-parameter"
STEP = 8


def schedule(optimizer: AdamW, total: int, warm_up: int, least: int) -> LambdaLR:
    """Linear warm-up, linear decay; `least` is what the decay takes at least (0 is the culprit)."""
    step = torch.arange(1, total + 2)
    rising, falling = step / warm_up, (total - step) / max(total - warm_up, least)
    factors = torch.where(step < warm_up, rising, falling)
    return LambdaLR(optimizer, lambda index: float(factors[index]))


def short_run(least: int) -> list[float]:
    torch.manual_seed(0)
    model = ConvNet()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    lr = schedule(optimizer, total=8, warm_up=8, least=least)
    return train(model, digits_loss, loaders()[0], optimizer, steps=8, scheduler=lr)


def test_broken() -> None:
    losses = short_run(least=0)
    assert losses[-1] < losses[0]


def test_healthy() -> None:
    losses = short_run(least=1)
    assert losses[-1] < losses[0]
