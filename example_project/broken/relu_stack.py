"""Culprit: six ReLU layers under an aggressive learning rate.

Seen: nothing saturates; the activations grow from step to step and overflow at the third.
Finding: the loss is NaN at step 3.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD

from data.digits import loaders
from models.vision import digits_loss
from training import train

KIND = "nonfinite-loss"
STEP = 3


def relu_stack(depth: int = 6, width: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def train_with(lr: float) -> list[float]:
    model = relu_stack()
    return train(model, digits_loss, loaders()[0], SGD(model.parameters(), lr=lr), steps=10, max_norm=None)


def test_broken() -> None:
    assert len(train_with(lr=100.0)) == 10


def test_healthy() -> None:
    losses = train_with(lr=0.05)
    assert losses[-1] < losses[0]
