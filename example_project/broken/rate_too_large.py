"""Culprit: gradient descent with a rate above 2 over the largest curvature of the loss, so each step overshoots.

Seen: the loss falls for two steps, then climbs from step to step; all of it is finite when the short test ends.
Finding: the gradient norm grows with the loss over the run, at the optimizer's line.
"""

from __future__ import annotations

from pytest_nanstab import TrainingSetup, stability_suite
from torch import nn
from torch.optim import SGD

from data.diabetes import train_and_test
from models.tabular import TabularRegressor, regression_loss

KIND = "exploding-gradient"
EXPLICIT = True
ITEM = "gradient_bounds-32-true"


class LinearRegressor(TabularRegressor):
    """The baseline that any other regressor has to beat."""

    def __init__(self, features: int = 10) -> None:
        super().__init__(features)
        self.layers = nn.Linear(features, 1)


def setup_at(lr: float) -> TrainingSetup:
    model = LinearRegressor()
    optimizer = SGD(model.parameters(), lr=lr)  # culprit
    return TrainingSetup(model=model, loss=regression_loss, optimizer=optimizer, batches=train_and_test()[0])


@stability_suite(steps=20, checks=["gradient_bounds"])
def test_broken() -> TrainingSetup:
    return setup_at(lr=0.3)


@stability_suite(steps=20, checks=["gradient_bounds"])
def test_healthy() -> TrainingSetup:
    return setup_at(lr=0.05)
