"""Multiple-instance pooling: logsumexp over a bag with no valid instance is -inf and replaced only afterwards."""

from __future__ import annotations

import math

import torch
from torch import nn

OP = ("logsumexp",)
PHASE = "backward"
MODULE = "pool"
STEP = 2
CAUSE = ("-inf", "mask", "empty", "where")


class BagPool(nn.Module):
    def forward(self, score, valid):
        bias = torch.zeros_like(score).masked_fill(~valid, -math.inf)
        pooled = torch.logsumexp(score + bias, dim=1)  # culprit
        return torch.where(valid.any(dim=1), pooled, torch.zeros_like(pooled))


class FiniteBagPool(nn.Module):
    def forward(self, score, valid):
        pooled = torch.logsumexp(score.masked_fill(~valid, -1e4), dim=1)
        return torch.where(valid.any(dim=1), pooled, torch.zeros_like(pooled))


class MILNet(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.instance = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.pool = pool

    def forward(self, bag, valid):
        return self.pool(self.instance(bag).squeeze(-1), valid)


def bags(sizes_per_batch):
    gen = torch.Generator().manual_seed(7)
    for counts in sizes_per_batch:
        sizes = torch.tensor(counts)
        bag = torch.randn(len(sizes), 5, 4, generator=gen)
        yield {"bag": bag, "valid": torch.arange(5) < sizes[:, None], "label": (sizes > 2).float()}


def epoch(pool, on_step=lambda *_: None):
    torch.manual_seed(7)
    net = MILNet(pool)
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for batch in bags([(5, 2, 1), (3, 0, 4), (2, 2, 5)]):
        label = batch.pop("label")
        loss = nn.functional.binary_cross_entropy_with_logits(net(**batch), label)
        opt.zero_grad()
        loss.backward()
        opt.step()
        on_step(net, loss)


def test_broken() -> None:
    epoch(BagPool())


def test_healthy() -> None:
    def finite(net, loss):
        assert loss.isfinite()
        assert all(p.isfinite().all() and p.grad.isfinite().all() for p in net.parameters())

    epoch(FiniteBagPool(), finite)
