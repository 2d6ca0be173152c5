"""Features standardised per window in numpy; a constant column gives 0 / 0, fed to the network at step 2."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

OP = ("data", "input", "batch", "from_numpy", "linear", "addmm")
PHASE = "data"
MODULE = None
STEP = 2
CAUSE = ("input", "data", "batch")


def zscore(window: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (window - window.mean(axis=0)) / window.std(axis=0)


def zscore_safe(window: np.ndarray) -> np.ndarray:
    return (window - window.mean(axis=0)) / np.maximum(window.std(axis=0), 1e-6)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(3, 5)
        self.act = nn.Softplus()
        self.out = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.act(self.inp(x)))


def windows(seed: int = 0):
    rng = np.random.default_rng(seed)
    for i in range(4):
        w = rng.normal(2.0, 3.0, size=(8, 3)).astype(np.float32)
        if i == 1:
            w[:, 1] = 4.0  # stuck sensor
        yield w


def train(standardise) -> list[torch.Tensor]:
    torch.manual_seed(1)
    detector = Detector()
    opt = torch.optim.RMSprop(detector.parameters(), lr=1e-3)
    record = []
    for window in windows():
        score = detector(torch.from_numpy(standardise(window)))  # culprit
        loss = nn.functional.binary_cross_entropy_with_logits(score, torch.ones_like(score))
        opt.zero_grad()
        loss.backward()
        opt.step()
        record.append(loss.detach())
        record.extend(p.grad.clone() for p in detector.parameters())
    return record + [p.detach() for p in detector.parameters()]


def test_broken() -> None:
    train(zscore)


def test_healthy() -> None:
    assert all(t.isfinite().all() for t in train(zscore_safe))
