"""What the hostile programs share: every test has a healthy twin, and the bug is never written in the test itself."""

import pytest
import torch
from torch import nn

both = pytest.mark.parametrize("bad", [False, True], ids=["good", "bad"])
X = torch.ones(4, 2)


def spoiled(value, bad):
    return value * float("nan") if bad else value


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.01)


def step(model, optimizer, bad=False, x=X):
    optimizer.zero_grad()
    loss = spoiled(model(x).square().mean(), bad)
    loss.backward()
    optimizer.step()
    return loss


def train(bad=False, model=None, steps=3, optimizer=None):
    """Three steps, the second of them with a loss that is NaN."""
    model = net() if model is None else model
    optimizer = sgd(model) if optimizer is None else optimizer
    for number in range(steps):
        step(model, optimizer, bad and number == 1)


class NotNow(nn.Module):
    """Multiplies by NaN on demand."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.bad = False

    def forward(self, x):
        return spoiled(self.layer(x), self.bad)
