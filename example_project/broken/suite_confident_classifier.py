"""Culprit: the probability of the label is gathered from a softmax and its logarithm taken; it can underflow to 0.

Seen: nothing in the first epochs; days later, when the logits have grown, one image makes the loss inf.
Finding: the suite's adversarial batches fail at a few times the trained weights, at the line of the logarithm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytest_nanstab import TrainingSetup, stability_suite
from torch import Tensor, nn
from torch.optim import AdamW

from data.digits import loaders
from models.vision import ConvNet

KIND = "nonfinite-loss"
EXPLICIT = True
ITEM = "adversarial_batches-32-true"


def log_of_gathered(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    probabilities = torch.softmax(model(images), dim=-1)
    of_label = probabilities.gather(1, labels[:, None])
    return -torch.log(of_label).mean()  # culprit


def gathered_log(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return -F.log_softmax(model(images), dim=-1).gather(1, labels[:, None]).mean()


def setup_with(loss: object) -> TrainingSetup:
    model = ConvNet()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=loaders()[0])


@stability_suite(steps=10, checks=["finite_steps", "adversarial_batches"])
def test_broken() -> TrainingSetup:
    return setup_with(log_of_gathered)


@stability_suite(steps=10, checks=["finite_steps", "adversarial_batches"])
def test_healthy() -> TrainingSetup:
    return setup_with(gathered_log)
