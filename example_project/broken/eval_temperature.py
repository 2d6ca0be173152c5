"""Culprit: predictions are divided by a temperature in eval mode only, and nobody has calibrated it: it is 0.

Seen: training and its loss are fine, every prediction is NaN.
Finding: the model's output is NaN in eval mode from finite input.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import AdamW

from data.digits import loaders
from models.vision import ConvNet, digits_loss
from training import train

KIND = "nonfinite-output"


class Calibrated(ConvNet):
    temperature: Tensor

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if self.training:
            return logits
        return torch.softmax(logits / self.temperature, dim=-1)  # culprit


def train_and_predict(temperature: float) -> Tensor:
    torch.manual_seed(0)
    train_batches, test_batches = loaders()
    model = Calibrated(temperature)
    losses = train(model, digits_loss, train_batches, AdamW(model.parameters(), lr=3e-3), steps=5)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        return model.eval()(next(iter(test_batches))[0]).argmax(dim=-1)


def test_broken() -> None:
    assert train_and_predict(temperature=0.0).max() < 10


def test_healthy() -> None:
    assert train_and_predict(temperature=1.5).max() < 10
