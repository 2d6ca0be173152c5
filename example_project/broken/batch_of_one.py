"""Culprit: rows are scaled by the unbiased standard deviation of their batch, which one row does not have.

Seen: training is fine, the prediction for a single patient is NaN.
Finding: the model's output is NaN in eval mode from finite input.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from data.diabetes import train_and_test
from models.tabular import TabularRegressor, regression_loss
from training import train

KIND = "nonfinite-output"


class BatchScaled(TabularRegressor):
    correction = 1

    def forward(self, rows: Tensor) -> Tensor:
        deviation = rows.std(dim=0, correction=self.correction)  # culprit
        return super().forward((rows - rows.mean(dim=0)) / (deviation + 1e-6))


class BiasedBatchScaled(BatchScaled):
    correction = 0


def train_and_predict(cls: type[BatchScaled]) -> Tensor:
    torch.manual_seed(0)
    train_batches, test_batches = train_and_test()
    model = cls(features=10)
    losses = train(model, regression_loss, train_batches, AdamW(model.parameters(), lr=1e-2), steps=8)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        return model.eval()(test_batches[0][0][:1])


@pytest.mark.filterwarnings("ignore:std")
def test_broken() -> None:
    assert train_and_predict(BatchScaled).shape == (1,)


def test_healthy() -> None:
    assert train_and_predict(BiasedBatchScaled).shape == (1,)
