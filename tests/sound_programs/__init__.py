"""Numerically sound training programs: what a search for unsafe operations must stay silent about."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

SOUND = []


def sound(function):
    """Register a function without arguments that returns a TrainingSetup."""
    SOUND.append((function.__name__, function))
    return function


class Source:
    """Deterministic data."""

    def __init__(self, seed):
        self.g = torch.Generator().manual_seed(seed)

    def normal(self, *shape, scale=1.0, limit=3.0, dtype=torch.float32):
        return torch.randn(*shape, generator=self.g, dtype=dtype).clamp(-limit, limit) * scale

    def uniform(self, low, high, *shape, dtype=torch.float32):
        return torch.rand(*shape, generator=self.g, dtype=dtype) * (high - low) + low

    def ints(self, low, high, *shape, dtype=torch.int64):
        """Whole numbers in low..high, both included."""
        return torch.randint(low, high + 1, shape, generator=self.g, dtype=dtype)


def data(count, make, seed=0):
    """A list of `count` batches, each `make(source)`."""
    source = Source(seed)
    return [make(source) for _ in range(count)]


def training(model, loss, optimizer, batches, **more):
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, **more)


def T(shape, dtype="float32", min_value=None, max_value=None, **more):
    return TensorSpec(shape=shape, dtype=dtype, min_value=min_value, max_value=max_value, **more)


def mlp(*sizes, act=nn.ReLU):
    layers = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            layers.append(act())
    return nn.Sequential(*layers)


def within(lengths, size):
    """Boolean [B, size]: positions below each length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


from . import (  # noqa: E402, F401
    attention,
    attention_more,
    distributions,
    distributions_more,
    geometry,
    geometry_more,
    graphs,
    graphs_more,
    probability,
    probability_more,
    sequences,
    sequences_more,
)
