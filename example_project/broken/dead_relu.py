"""Culprit: AdamW at a rate copied from a recipe for SGD.

Seen: one very large loss in the second step, then those of a constant prediction that never get better.
Finding: all units of the second hidden layer are dead: 0 for every patient, and no gradient brings them back.
"""

from __future__ import annotations

from pytest_nanstab import TrainingSetup, stability_suite
from torch.optim import AdamW

from data.diabetes import train_and_test
from models.tabular import TabularRegressor, regression_loss

KIND = "dead-unit"
EXPLICIT = True
MODULE = "layers.2"
ITEM = "gradient_bounds-32-true"


def setup_at(lr: float) -> TrainingSetup:
    model = TabularRegressor(features=10)
    optimizer = AdamW(model.parameters(), lr=lr)
    return TrainingSetup(model=model, loss=regression_loss, optimizer=optimizer, batches=train_and_test()[0])


@stability_suite(steps=15, checks=["gradient_bounds"])
def test_broken() -> TrainingSetup:
    return setup_at(lr=0.5)  # culprit


@stability_suite(steps=15, checks=["gradient_bounds"])
def test_healthy() -> TrainingSetup:
    return setup_at(lr=0.01)
