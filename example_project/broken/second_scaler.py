"""Culprit: the test rows are scaled by a scaler of their own, so that the same patient has two different values.

Seen: nothing is NaN; the test loss is worse than it should be, or better.
Finding: `assert_handles_nonfinite` moves one test row a little, and other test rows move with it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from pytest_nanstab import assert_handles_nonfinite
from sklearn.preprocessing import StandardScaler

from data.diabetes import TARGET, raw_table, split

KIND = "leaked-statistics"
EXPLICIT = True
Splits = tuple[np.ndarray, np.ndarray]


def checked_split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    numbers = table.apply(pd.to_numeric)
    if len(numbers) < 10 or not (numbers.abs() < 1e6).to_numpy().all():
        raise ValueError("the table is too short, or holds NaN, Inf or values beyond 1e6")
    return split(numbers)


def prepare_with_two(table: pd.DataFrame) -> Splits:
    train, test = checked_split(table)
    train = StandardScaler().fit_transform(train)
    test = StandardScaler().fit_transform(test)  # culprit
    return train, test


def prepare_with_one(table: pd.DataFrame) -> Splits:
    train, test = checked_split(table)
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def sample() -> pd.DataFrame:
    return raw_table().drop(columns=TARGET).dropna().head(20)


def test_broken() -> None:
    assert_handles_nonfinite(prepare_with_two, sample(), policy="reject")


def test_healthy() -> None:
    assert_handles_nonfinite(prepare_with_one, sample(), policy="reject")
