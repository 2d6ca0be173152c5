"""Culprit: hidden weights of standard deviation 0.001, the small random numbers of old tutorials.

Seen: every patient gets the same prediction for a long time.
Finding: the hidden layers shrink the signal a hundredfold and more, which no known initialisation does.
"""

from __future__ import annotations

from pytest_nanstab import TrainingSetup, stability_suite
from torch import nn
from torch.optim import AdamW

from data.diabetes import train_and_test
from models.tabular import TabularRegressor, regression_loss

KIND = "init-scale"
EXPLICIT = True
MODULE = "layers.0"
ITEM = "init_scale"


class SmallRegressor(TabularRegressor):
    def __init__(self, features: int, hidden: int = 32) -> None:
        super().__init__(features, hidden)
        for layer in self.layers[::2]:
            nn.init.zeros_(layer.bias)
            nn.init.normal_(layer.weight, std=0.001)  # culprit


class HeRegressor(TabularRegressor):
    def __init__(self, features: int, hidden: int = 32) -> None:
        super().__init__(features, hidden)
        for layer in self.layers[::2]:
            nn.init.zeros_(layer.bias)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def setup_of(model: TabularRegressor) -> TrainingSetup:
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=regression_loss, optimizer=optimizer, batches=train_and_test()[0])


@stability_suite(checks=["init_scale"])
def test_broken() -> TrainingSetup:
    return setup_of(SmallRegressor(features=10))


@stability_suite(checks=["init_scale"])
def test_healthy() -> TrainingSetup:
    return setup_of(HeRegressor(features=10))
