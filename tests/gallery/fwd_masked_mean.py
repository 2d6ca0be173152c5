"""Imputation with a masked mean squared error: one series has no observed value, so the mean is 0/0."""

from __future__ import annotations

import torch
from torch import nn

OP = ("div", "true_divide")
PHASE = "forward"
MODULE = None
STEP = 3
CAUSE = ("zero", "empty", "clamp", "mask")


def masked_mse(pred, target, observed):
    se = (pred - target) ** 2 * observed
    per_series = se.sum(dim=1) / observed.sum(dim=1)  # culprit
    return per_series.mean()


def masked_mse_fixed(pred, target, observed):
    se = (pred - target) ** 2 * observed
    return (se.sum(dim=1) / observed.sum(dim=1).clamp(min=1)).mean()


def load_series():
    rng = torch.Generator().manual_seed(42)
    series = torch.randn(4, 5, 12, generator=rng)
    observed = (torch.rand(4, 5, 12, generator=rng) < 0.6).float()
    observed[:, :, 0] = 1.0
    observed[2, 4] = 0.0  # sensor offline for the whole window
    return series, observed


def loop(criterion):
    torch.manual_seed(5)
    encoder = nn.Linear(2, 8)
    readout = nn.Linear(8, 1)
    params = [*encoder.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(params, lr=3e-3)
    series, observed = load_series()
    for x, m in zip(series, observed, strict=True):
        hidden = torch.tanh(encoder(torch.stack([x * m, m], dim=-1)))
        loss = criterion(readout(hidden).squeeze(-1), x, m)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
    return loss.detach(), params


def test_broken() -> None:
    loop(masked_mse)


def test_healthy() -> None:
    loss, params = loop(masked_mse_fixed)
    assert loss.isfinite()
    assert all(p.isfinite().all() for p in params)
