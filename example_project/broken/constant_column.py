"""Culprit: a z-score by hand over a column that is constant in the training split: 0 / 0.

Seen: every loss is NaN from the start.
Finding: NaN went into the model in the training step 1.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim import AdamW

from data.diabetes import TARGET, raw_table, split
from models.tabular import TabularRegressor, regression_loss
from training import train

KIND = "nonfinite-input"
STEP = 1


def z_score(table: pd.DataFrame) -> pd.DataFrame:
    return (table - table.mean()) / table.std()


def guarded_z_score(table: pd.DataFrame) -> pd.DataFrame:
    return (table - table.mean()) / table.std().replace(0, 1)


def one_batch(features: pd.DataFrame, targets: pd.Series) -> list[tuple[Tensor, Tensor]]:
    rows, values = (torch.from_numpy(np.asarray(x, dtype="float32")) for x in (features, targets / 100))
    return [(rows, values)]


def train_with(scale: object) -> list[float]:
    table, _ = split(raw_table().assign(hospital=1.0))
    table = table.fillna(table.median())
    torch.manual_seed(0)
    model = TabularRegressor(features=11)
    batches = one_batch(scale(table.drop(columns=TARGET)), table[TARGET])
    return train(model, regression_loss, batches, AdamW(model.parameters(), lr=1e-2), steps=5)


def test_broken() -> None:
    assert not train_with(z_score)[-1] > 100


def test_healthy() -> None:
    losses = train_with(guarded_z_score)
    assert losses[-1] < losses[0]
