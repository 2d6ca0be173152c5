"""Focal loss with gamma 0.5: the slope of (1 - p) ** gamma is infinite for a perfectly confident prediction."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

OP = ("pow",)
PHASE = "backward"
MODULE = "criterion"
STEP = 3
CAUSE = ("zero", "gamma", "exponent", "clamp", "eps")


class FocalLoss(nn.Module):
    def __init__(self, gamma=0.5, floor=None):
        super().__init__()
        self.gamma, self.floor = gamma, floor

    def forward(self, logits, y):
        ce = functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
        p = torch.sigmoid(logits)
        miss = 1 - (p * y + (1 - p) * (1 - y))
        if self.floor is not None:
            miss = miss.clamp_min(self.floor)
        modulator = miss**self.gamma  # culprit
        return (modulator * ce).mean()


class Detector(nn.Module):
    def __init__(self, criterion):
        super().__init__()
        self.score = nn.Linear(2, 1)
        nn.init.ones_(self.score.weight)
        self.criterion = criterion

    def forward(self, features, targets):
        logits = self.score(features).squeeze(-1)
        return {"logits": logits, "loss": self.criterion(logits, targets)}


def training_data():
    g = torch.Generator().manual_seed(31)
    for i in range(4):
        features = torch.randn(6, 2, generator=g)
        if i == 2:
            features[4] = 30.0  # an unmistakable object
        yield {"features": features, "targets": (features.sum(1) > 0).float()}


def fit(criterion):
    torch.manual_seed(0)
    detector = Detector(criterion)
    opt = torch.optim.SGD(detector.parameters(), lr=0.01)
    for batch in training_data():
        loss = detector(**batch)["loss"]
        opt.zero_grad()
        loss.backward()
        opt.step()
        yield [loss, *detector.parameters(), *(p.grad for p in detector.parameters())]


def test_broken() -> None:
    list(fit(FocalLoss()))


def test_healthy() -> None:
    for tensors in fit(FocalLoss(floor=1e-6)):
        assert all(t.isfinite().all() for t in tensors)
