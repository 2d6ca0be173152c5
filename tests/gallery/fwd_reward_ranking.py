"""Pairwise reward model: the Bradley-Terry loss is written as log(sigmoid(margin)) and the sigmoid underflows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

OP = ("log",)
PHASE = "forward"
MODULE = "ranker"
STEP = 2
CAUSE = ("logsigmoid", "log_sigmoid", "log of a sigmoid", "softplus")


class Pair(NamedTuple):
    chosen: torch.Tensor
    rejected: torch.Tensor


class BradleyTerry(nn.Module):
    def forward(self, chosen, rejected):
        return -torch.log(torch.sigmoid(chosen - rejected)).mean()  # culprit


class StableBradleyTerry(nn.Module):
    def forward(self, chosen, rejected):
        return -F.logsigmoid(chosen - rejected).mean()


class RewardModel(nn.Module):
    def __init__(self, ranker: nn.Module) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        self.ranker = ranker

    def forward(self, pair: Pair):
        return self.ranker(self.score(pair.chosen), self.score(pair.rejected))


class Trainer:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.opt = model, torch.optim.Adam(model.parameters(), lr=1e-3)

    def fit(self, pairs: list[Pair]) -> float:
        for pair in pairs:
            loss = self.model(pair)
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
        return loss.item()


def run(ranker):
    torch.manual_seed(3)
    pairs = [Pair(torch.randn(4, 8), torch.randn(4, 8)) for _ in range(4)]
    pairs[1].chosen.mul_(3000.0)  # a batch of features that were never scaled
    pairs[1].rejected.mul_(3000.0)
    return Trainer(RewardModel(ranker)).fit(pairs)


def test_broken() -> None:
    run(BradleyTerry())


def test_healthy() -> None:
    assert math.isfinite(run(StableBradleyTerry()))
