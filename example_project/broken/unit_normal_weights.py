"""Culprit: attention projections drawn with torch.randn: standard deviation 1, whatever the width.

Seen: nothing; queries, keys and values are six times too large, so the scores are spread too wide for the softmax.
Finding: the projections enlarge the signal, which no known initialisation does.
"""

from __future__ import annotations

import torch
from pytest_nanstab import TrainingSetup, stability_suite
from torch import Tensor, nn
from torch.optim import AdamW

from data.digits import loaders
from models.attention import MultiHeadAttention
from models.vision import digits_loss

KIND = "init-scale"
EXPLICIT = True
MODULE = "attention.query"
ITEM = "init_scale"


class RandnAttention(MultiHeadAttention):
    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__(d_model, heads)
        self.query = randn_linear(d_model)
        self.key = randn_linear(d_model)
        self.value = randn_linear(d_model)


def randn_linear(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    layer.weight = nn.Parameter(torch.randn(width, width))  # culprit
    return layer


class RowReader(nn.Module):
    """Reads an image row by row: images [batch, 1, 8, 8] to logits [batch, 10]."""

    def __init__(self, attention: type[MultiHeadAttention], d_model: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, d_model)
        self.attention = attention(d_model, heads)
        self.head = nn.Linear(8 * d_model, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embed(images.squeeze(1))
        return self.head(self.attention(rows, rows).flatten(1))


def setup_of(attention: type[MultiHeadAttention]) -> TrainingSetup:
    model = RowReader(attention)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=digits_loss, optimizer=optimizer, batches=loaders()[0])


@stability_suite(checks=["init_scale"])
def test_broken() -> TrainingSetup:
    return setup_of(RandnAttention)


@stability_suite(checks=["init_scale"])
def test_healthy() -> TrainingSetup:
    return setup_of(MultiHeadAttention)
