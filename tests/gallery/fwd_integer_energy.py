"""Vibration monitoring: the energy of int32 samples wraps around to a negative number before the square root."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

OP = ("sqrt",)
PHASE = "forward"
MODULE = "frontend"
STEP = 2
CAUSE = ("negative", "overflow", "wrap", "integer", "int32")


class Frontend(nn.Module):
    """Root of the mean energy of each channel, in thousands of counts."""

    def forward(self, counts):
        energy = (counts * counts).float().mean(dim=-1)
        return torch.sqrt(energy) / 1000.0  # culprit


class FloatFrontend(nn.Module):
    def forward(self, counts):
        energy = counts.double().square().mean(dim=-1)
        return (torch.sqrt(energy) / 1000.0).float()


class FaultDetector(nn.Module):
    def __init__(self, frontend: nn.Module, channels: int) -> None:
        super().__init__()
        self.frontend = frontend
        self.rule = nn.Linear(channels, 1)

    def forward(self, counts):
        return self.rule(self.frontend(counts)).squeeze(-1)


def recordings():
    """Batches of (machines, channels, samples) from a 24 bit converter."""
    rng = np.random.default_rng(5)
    quiet = rng.integers(-9000, 9000, size=(4, 2, 16))
    # a square wave of the failing bearing: its square is just above 2**31
    loud = np.where(rng.random((4, 2, 16)) < 0.5, -47000, 47000)
    return [torch.as_tensor(a, dtype=torch.int32) for a in (quiet, loud, quiet[::-1].copy())]


def train(frontend: nn.Module):
    torch.manual_seed(0)
    detector = FaultDetector(frontend, channels=2)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3, weight_decay=1e-4)
    faulty = torch.tensor([0.0, 1.0, 0.0, 1.0])
    for counts in recordings():
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(detector(counts), faulty)
        loss.backward()
        optimizer.step()
    return detector


def test_broken() -> None:
    train(Frontend())


def test_healthy() -> None:
    detector = train(FloatFrontend())
    assert detector.rule.weight.isfinite().all()
    assert detector.rule.bias.isfinite().all()
