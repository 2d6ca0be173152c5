"""Culprit: a pipeline that fills NaN and forgets infinities.

Seen: nothing until a division upstream gives the first Inf.
Finding: `assert_handles_nonfinite(policy="sanitize")`: an Inf that goes in comes out as a non-finite value.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from pytest_nanstab import assert_handles_nonfinite

from data.diabetes import TARGET, Preprocessor, raw_table, split

KIND = "accepted-nonfinite"
EXPLICIT = True


def features() -> pd.DataFrame:
    return split(raw_table())[0].drop(columns=TARGET)


def fill_only(table: pd.DataFrame) -> np.ndarray:
    train = features()
    filled = table.fillna(train.median())  # culprit
    return ((filled - train.mean()) / train.std()).to_numpy()


def test_broken() -> None:
    assert_handles_nonfinite(fill_only, features().dropna().head(8), policy="sanitize")


def test_healthy() -> None:
    assert_handles_nonfinite(Preprocessor().fit(features()), features().dropna().head(8), policy="sanitize")
