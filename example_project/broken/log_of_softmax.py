"""Culprit: log(softmax(x)); a probability below 1e-45 is exactly 0 and its logarithm -inf.

Seen: with pixels of 0..255 the logits are large, the first loss is inf and all later ones NaN.
Finding: the loss is inf at step 1; the `nanstab` fixture raises it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytest_nanstab import TrainingSetup
from torch import Tensor, nn
from torch.optim import AdamW

from data.digits import loaders
from models.vision import ConvNet

KIND = "nonfinite-loss"
STEP = 1
EXPLICIT = True


def log_of_softmax(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    probabilities = torch.softmax(model(255 * images), dim=-1)
    log_probabilities = torch.log(probabilities)  # culprit
    return F.nll_loss(log_probabilities, labels)


def log_softmax(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.nll_loss(F.log_softmax(model(255 * images), dim=-1), labels)


def setup_with(loss: object) -> TrainingSetup:
    torch.manual_seed(0)
    model = ConvNet()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=loaders()[0])


def test_broken(nanstab) -> None:
    nanstab.train(setup_with(log_of_softmax), steps=5)


def test_healthy(nanstab) -> None:
    run = nanstab.train(setup_with(log_softmax), steps=5)
    assert run.loss[-1] < run.loss[0]
