"""Culprit: the logarithm of a count that is 0 for some patients.

Seen: nothing until a batch with such a patient comes by.
Finding: `assert_finite_batches` walks the loader and lists field, row and column of every -inf.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from pytest_nanstab import assert_finite_batches
from torch.utils.data import DataLoader, TensorDataset

from data.diabetes import TARGET, raw_table, split

KIND = "bad-data"
EXPLICIT = True


def loader(transform: Callable[[pd.Series], pd.Series]) -> DataLoader:
    table, _ = split(raw_table())
    visits = pd.Series(np.arange(len(table)) % 23, index=table.index)
    features = table.drop(columns=TARGET).fillna(table.median()).assign(visits=transform(visits))
    rows = torch.from_numpy(features.to_numpy(dtype="float32"))
    return DataLoader(TensorDataset(rows, torch.from_numpy(table[TARGET].to_numpy(dtype="float32"))), batch_size=32)


def log(counts: pd.Series) -> pd.Series:
    with np.errstate(divide="ignore"):
        return np.log(counts)  # culprit


def test_broken() -> None:
    assert_finite_batches(loader(log))


def test_healthy() -> None:
    assert_finite_batches(loader(np.log1p))
