"""Gradient accumulation over three micro-batches, one of which has a zero rate behind a where around the log."""

from __future__ import annotations

import torch
from torch import nn

OP = ("log",)
PHASE = "backward"
MODULE = None
STEP = 2
CAUSE = ("where", "mask", "log of", "zero")


def poisson_nll(rate, count):
    log_rate = torch.where(rate > 0, torch.log(rate), torch.zeros_like(rate))  # culprit
    return (rate - count * log_rate).mean()


def poisson_nll_safe(rate, count):
    return (rate - count * torch.log(rate.clamp_min(1e-6))).mean()


class Trainer:
    def __init__(self, loss_fn):
        self.loss_fn = loss_fn
        self.model = nn.Linear(3, 2, bias=False)
        nn.init.uniform_(self.model.weight, 0.5, 1.5)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.log: list[float] = []

    def fit(self, micro_batches):
        for i, (exposure, count) in enumerate(micro_batches, start=1):
            loss = self.loss_fn(self.model(exposure), count) / 3
            loss.backward()
            self.log.append(loss.item())
            if i % 3 == 0:
                self.optimizer.step()
                self.on_step_end()
                self.optimizer.zero_grad()

    def on_step_end(self):
        """Override to look at the model after each update."""


class CheckedTrainer(Trainer):
    def on_step_end(self):
        assert all(p.isfinite().all() and p.grad.isfinite().all() for p in self.model.parameters())


def micro_batches(n=9):
    torch.manual_seed(5)
    out = []
    for i in range(n):
        exposure = torch.rand(4, 3) + 0.1
        if i == 4:
            exposure[2] = 0.0  # nobody was observed
        out.append((exposure, torch.poisson(exposure[:, :2])))
    return out


def test_broken() -> None:
    Trainer(poisson_nll).fit(micro_batches())


def test_healthy() -> None:
    data = micro_batches()
    trainer = CheckedTrainer(poisson_nll_safe)
    trainer.fit(data)
    assert torch.tensor(trainer.log).isfinite().all()
