"""Culprit: gradients are clipped while they are still multiplied by the loss scale.

Seen: training crawls: a bound of 1 on gradients that are scaled by 65536 is a bound of 1.5e-5.
Finding: the clip ran on scaled gradients, at the clip call.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD

from data.digits import loaders
from models.vision import ConvNet, digits_loss

KIND = "scaled-clip"


def build() -> tuple[ConvNet, SGD, torch.amp.GradScaler]:
    torch.manual_seed(0)
    model = ConvNet()
    return model, SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")


def test_broken() -> None:
    model, optimizer, scaler = build()
    for batch in list(loaders()[0])[:6]:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = digits_loss(model, batch)
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # culprit
        scaler.step(optimizer)
        scaler.update()
    assert torch.isfinite(loss)


def test_healthy() -> None:
    model, optimizer, scaler = build()
    for batch in list(loaders()[0])[:6]:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = digits_loss(model, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        scaler.step(optimizer)
        scaler.update()
    assert torch.isfinite(loss)
