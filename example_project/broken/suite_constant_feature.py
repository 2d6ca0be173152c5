"""Culprit: a layer divides each feature by its standard deviation over the batch, without an epsilon.

Seen: nothing, on real data no feature is constant.
Finding: the suite's adversarial batches, all inside the declared domain, include a constant feature: the loss is NaN.
"""

from __future__ import annotations

from pytest_nanstab import TrainingSetup, stability_suite
from pytest_nanstab.strategies import TensorSpec
from torch import Tensor
from torch.optim import AdamW

from data.diabetes import train_and_test
from models.tabular import TabularRegressor, regression_loss

KIND = "nonfinite-loss"
EXPLICIT = True
ITEM = "adversarial_batches-32-true"


class BatchScaled(TabularRegressor):
    epsilon = 0.0

    def forward(self, rows: Tensor) -> Tensor:
        variance = rows.var(dim=0, correction=0)
        return super().forward((rows - rows.mean(dim=0)) / (variance + self.epsilon).sqrt())  # culprit


class SafelyBatchScaled(BatchScaled):
    epsilon = 1e-5


def setup_of(model: TabularRegressor) -> TrainingSetup:
    domain = (
        TensorSpec(shape=("batch", 10), min_value=-5.0, max_value=5.0),
        TensorSpec(shape=("batch",), min_value=0.0, max_value=4.0),
    )
    return TrainingSetup(
        model=model,
        loss=regression_loss,
        optimizer=AdamW(model.parameters(), lr=1e-3),
        batches=train_and_test()[0],
        domain=domain,
        sizes={"batch": (2, 32)},
    )


@stability_suite(steps=10, checks=["finite_steps", "adversarial_batches"])
def test_broken() -> TrainingSetup:
    return setup_of(BatchScaled(features=10))


@stability_suite(steps=10, checks=["finite_steps", "adversarial_batches"])
def test_healthy() -> TrainingSetup:
    return setup_of(SafelyBatchScaled(features=10))
