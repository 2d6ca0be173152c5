"""Culprit: ten sigmoid layers in a row; the slope of a sigmoid is at most 1/4.

Seen: the loss stays near log(10), as if the digits had nothing to teach.
Finding: the gradient vanishes on its way back to the first layers.
"""

from __future__ import annotations

from pytest_nanstab import TrainingSetup, stability_suite
from torch import Tensor, nn
from torch.optim import AdamW

from data.digits import loaders
from models.vision import digits_loss

KIND = "vanishing-gradient"
EXPLICIT = True
MODULE = "hidden.0"
ITEM = "gradient_bounds-32-true"


class DeepNet(nn.Module):
    """A perceptron of many hidden layers: images [batch, 1, 8, 8] to logits [batch, 10]."""

    def __init__(self, activation: type[nn.Module], depth: int = 10, width: int = 64) -> None:
        super().__init__()
        blocks = [(nn.Linear(width, width), activation()) for _ in range(depth)]  # culprit
        hidden = [layer for block in blocks for layer in block]
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(width, 10)
        for layer in hidden[::2]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.hidden(images.flatten(1)))


def setup_of(model: nn.Module) -> TrainingSetup:
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=digits_loss, optimizer=optimizer, batches=loaders()[0])


@stability_suite(steps=12, checks=["gradient_bounds"])
def test_broken() -> TrainingSetup:
    return setup_of(DeepNet(nn.Sigmoid))


@stability_suite(steps=12, checks=["gradient_bounds"])
def test_healthy() -> TrainingSetup:
    return setup_of(DeepNet(nn.ReLU))
