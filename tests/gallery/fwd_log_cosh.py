"""Robust regression with a log-cosh loss written out: cosh of a residual above 89 is infinite."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn, optim

OP = ("cosh",)
PHASE = "forward"
MODULE = None
STEP = 4
CAUSE = ("overflow", "softplus", "logaddexp", "cosh")


def make_criterion(kind: str):
    def log_cosh(pred, target):
        diff = pred - target
        return torch.log(torch.cosh(diff)).mean()  # culprit

    def stable_log_cosh(pred, target):
        diff = (pred - target).abs()
        return (diff + F.softplus(-2.0 * diff) - math.log(2.0)).mean()

    return {"plain": log_cosh, "stable": stable_log_cosh}[kind]


def house_prices():
    gen = torch.Generator().manual_seed(30)
    rooms = torch.randint(1, 7, (20, 2), generator=gen).float()
    price = rooms @ torch.tensor([[3.0], [1.5]])
    price[16] = 250.0  # a palace
    return rooms, price


def run(kind: str) -> list[float]:
    torch.manual_seed(0)
    rooms, price = house_prices()
    model = nn.Linear(2, 1)
    criterion = make_criterion(kind)
    opt = optim.SGD(model.parameters(), lr=0.01)
    losses: list[float] = []

    for x, y in zip(rooms.split(5), price.split(5), strict=True):

        def closure(x=x, y=y):
            opt.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            losses.append(loss.item())
            return loss

        opt.step(closure)
    return losses


def test_broken() -> None:
    run("plain")


def test_healthy() -> None:
    assert all(map(math.isfinite, run("stable")))
