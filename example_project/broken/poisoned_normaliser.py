"""Culprit: a normaliser takes a batch into its running mean before it checks it; the refused batch stays in there.

Seen: one batch is refused and logged; from the next one on everything is NaN.
Finding: `assert_handles_nonfinite` puts good data in after the bad ones, and they come out as NaN.
"""

from __future__ import annotations

import torch
from pytest_nanstab import assert_handles_nonfinite
from torch import Tensor

from data.digits import loaders

KIND = "accepted-nonfinite"
EXPLICIT = True


class RunningNormaliser:
    def __init__(self, *, momentum: float = 0.1) -> None:
        self.mean = torch.zeros(1)
        self.momentum = momentum

    def check(self, images: Tensor) -> None:
        if len(images) == 0 or not ((images >= 0) & (images <= 1)).all():
            raise ValueError("pixels must lie in 0..1")

    def update(self, images: Tensor) -> None:
        self.mean = self.mean + self.momentum * (images.mean() - self.mean)


class CheckedLate(RunningNormaliser):
    def __call__(self, images: Tensor) -> Tensor:
        self.update(images)  # culprit
        self.check(images)
        return images - self.mean


class CheckedFirst(RunningNormaliser):
    def __call__(self, images: Tensor) -> Tensor:
        self.check(images)
        self.update(images)
        return images - self.mean


def sample() -> Tensor:
    images, _ = next(iter(loaders()[0]))
    return images[:6]


def test_broken() -> None:
    assert_handles_nonfinite(CheckedLate(), sample(), policy="reject")


def test_healthy() -> None:
    assert_handles_nonfinite(CheckedFirst(), sample(), policy="reject")
