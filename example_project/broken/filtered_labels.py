"""Culprit: outliers are filtered out of the features by Tukey's fences; the labels stay, and slide past their rows.

Seen: nothing; the model learns from wrong pairs.
Finding: `assert_handles_nonfinite(policy="sanitize")`: one bad row in, one feature row less out, and as many labels.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from pytest_nanstab import assert_handles_nonfinite

from data.diabetes import TARGET, raw_table

KIND = "accepted-nonfinite"
EXPLICIT = True
Pair = tuple[np.ndarray, np.ndarray]


def fences(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    low, high = table.quantile(0.25), table.quantile(0.75)
    return low - 1.5 * (high - low), high + 1.5 * (high - low)


LOW, HIGH = fences(raw_table())


def inside(table: pd.DataFrame) -> pd.Series:
    return ((table >= LOW[table.columns]) & (table <= HIGH[table.columns])).all(axis=1)


def load_features_only(pair: tuple[pd.DataFrame, pd.Series]) -> Pair:
    features, target = pair
    features = features.apply(pd.to_numeric)
    kept = features[inside(features)]  # culprit
    return kept.to_numpy(), np.nan_to_num(target.to_numpy(dtype="float64"), posinf=0.0, neginf=0.0)


def load_pairs(pair: tuple[pd.DataFrame, pd.Series]) -> Pair:
    features, target = (part.reset_index(drop=True) for part in pair)
    table = features.assign(**{TARGET: target}).apply(pd.to_numeric)
    table = table[inside(table)]
    return table[features.columns].to_numpy(), table[TARGET].to_numpy()


def sample() -> tuple[pd.DataFrame, pd.Series]:
    table = raw_table().dropna()
    table = table[inside(table)].head(8)
    return table.drop(columns=TARGET), table[TARGET]


def test_broken() -> None:
    assert_handles_nonfinite(load_features_only, sample(), policy="sanitize")


def test_healthy() -> None:
    assert_handles_nonfinite(load_pairs, sample(), policy="sanitize")
