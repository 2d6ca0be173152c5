"""Ranking model on nested dict batches; the item price of one record is NaN in the array the batches are cut from."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

OP = ("data", "input", "batch", "cat", "stack")
PHASE = "data"
MODULE = None
STEP = 2
CAUSE = ("input", "data", "batch", "price")


class Tower(nn.Module):
    def __init__(self, fields: int) -> None:
        super().__init__()
        self.proj = nn.Linear(fields, 4)

    def forward(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.proj(torch.stack(list(values.values()), dim=1)).tanh()


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user = Tower(2)
        self.item = Tower(2)

    def forward(self, features: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
        return (self.user(features["user"]) * self.item(features["item"])).sum(dim=1)


def batches(price_of_record_5: float, size: int = 4):
    rng = np.random.default_rng(9)
    columns = {name: rng.normal(size=12).astype(np.float32) for name in ("age", "tenure", "price", "stock")}
    columns["price"][5] = price_of_record_5
    clicked = (columns["stock"] > 0).astype(np.float32)
    for lo in range(0, 12, size):
        cut = {name: torch.from_numpy(values[lo : lo + size]) for name, values in columns.items()}
        user = {"age": cut["age"], "tenure": cut["tenure"]}
        item = {"price": cut["price"], "stock": cut["stock"]}
        yield {"features": {"user": user, "item": item}, "clicked": torch.from_numpy(clicked[lo : lo + size])}


def run(price_of_record_5: float) -> list[torch.Tensor]:
    torch.manual_seed(0)
    ranker = Ranker()
    opt = torch.optim.Adagrad(ranker.parameters(), lr=0.05)
    losses = []
    for batch in batches(price_of_record_5):
        logits = ranker(batch["features"])  # culprit
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch["clicked"])
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.detach())
    return losses + [t.detach() for p in ranker.parameters() for t in (p, p.grad)]


def test_broken() -> None:
    run(price_of_record_5=float("nan"))


def test_healthy() -> None:
    assert all(t.isfinite().all() for t in run(price_of_record_5=0.8))
