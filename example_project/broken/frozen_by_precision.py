"""Culprit: the small rate of a last fine-tuning, in a model that is bfloat16 throughout.

Seen: the loss wanders with the batches and does not fall; gradients and updates are as they should be.
Finding: no step has changed a bit of any weight but the biases: bfloat16 drops what is below 0.4 % of a number.
"""

from __future__ import annotations

from pytest_nanstab import TrainingSetup, stability_suite
from torch.optim import SGD

from data.digits import loaders
from models.vision import ConvNet, digits_loss

KIND = "stuck-parameter"
EXPLICIT = True
ITEM = "gradient_bounds-bf16-true"


def setup_at(lr: float) -> TrainingSetup:
    model = ConvNet()
    optimizer = SGD(model.parameters(), lr=lr)  # culprit
    return TrainingSetup(model=model, loss=digits_loss, optimizer=optimizer, batches=loaders()[0])


@stability_suite(steps=15, precision=["bf16-true"], checks=["gradient_bounds"])
def test_broken() -> TrainingSetup:
    return setup_at(lr=1e-6)


@stability_suite(steps=15, precision=["bf16-true"], checks=["gradient_bounds"])
def test_healthy() -> TrainingSetup:
    return setup_at(lr=0.05)
