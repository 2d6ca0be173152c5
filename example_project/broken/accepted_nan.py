"""Culprit: a loader that promises to refuse bad tables checks them with a comparison, which NaN passes.

Seen: nothing: `(table > 1e6).any()` is false for NaN.
Finding: `assert_handles_nonfinite(policy="reject")` feeds corrupted copies of a good table; one is accepted.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from pytest_nanstab import assert_handles_nonfinite
from torch import Tensor

from data.diabetes import TARGET, raw_table

KIND = "accepted-nonfinite"
EXPLICIT = True
LARGEST = 1e6


def load_comparing(table: pd.DataFrame) -> Tensor:
    if (table.abs() > LARGEST).to_numpy().any():  # culprit
        raise ValueError(f"the table holds values beyond {LARGEST:g}")
    return torch.from_numpy(table.to_numpy(dtype="float32"))


def load_checking(table: pd.DataFrame) -> Tensor:
    values = table.to_numpy(dtype="float64")
    if not (np.abs(values) <= LARGEST).all():
        raise ValueError(f"the table holds NaN, Inf or values beyond {LARGEST:g}")
    return torch.from_numpy(values.astype("float32"))


def sample() -> pd.DataFrame:
    return raw_table().drop(columns=TARGET).dropna().head(8)


def test_broken() -> None:
    assert_handles_nonfinite(load_comparing, sample(), policy="reject")


def test_healthy() -> None:
    assert_handles_nonfinite(load_checking, sample(), policy="reject")
