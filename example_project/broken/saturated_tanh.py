"""Culprit: patients in physical units, with blood values in the hundreds, go into tanh units without being scaled.

Seen: nothing; the loss falls, since the later layers learn from the plus and minus ones that the first happens to give.
Finding: the first tanh is saturated at nearly all of its values, so the layer before it does not learn.
"""

from __future__ import annotations

from pytest_nanstab import TrainingSetup, stability_suite
from torch import Tensor, nn
from torch.optim import AdamW

from data.diabetes import TARGET, Batch, Preprocessor, batches, raw_table, split
from models.tabular import regression_loss

KIND = "vanishing-gradient"
EXPLICIT = True
MODULE = "layers.0"
ITEM = "gradient_bounds-32-true"


class TanhRegressor(nn.Module):
    """A small perceptron of tanh units: rows [batch, features] to predictions [batch]."""

    def __init__(self, features: int = 10, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden),  # culprit
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 1),
        )

    def forward(self, rows: Tensor) -> Tensor:
        return self.layers(rows).squeeze(-1)


def patients(*, scaled: bool) -> list[Batch]:
    train, _ = split(raw_table())
    preprocess = Preprocessor().fit(train.drop(columns=TARGET))
    if scaled:
        return batches(train, preprocess)
    return batches(train, lambda table: table.fillna(table.median()).to_numpy())


def setup_of(*, scaled: bool) -> TrainingSetup:
    model = TanhRegressor()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=regression_loss, optimizer=optimizer, batches=patients(scaled=scaled))


@stability_suite(steps=12, checks=["gradient_bounds"])
def test_broken() -> TrainingSetup:
    return setup_of(scaled=False)


@stability_suite(steps=12, checks=["gradient_bounds"])
def test_healthy() -> TrainingSetup:
    return setup_of(scaled=True)
