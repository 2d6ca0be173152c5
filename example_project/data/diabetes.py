"""scikit-learn's diabetes table with the faults of real tables put in, and the pipeline that copes with them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_diabetes
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import Tensor

Batch = tuple[Tensor, Tensor]
TARGET = "target"


def raw_table() -> pd.DataFrame:
    """442 patients in physical units: 2 % of the cells missing, some blood values mistyped by a factor of 100."""
    table = load_diabetes(as_frame=True, scaled=False).frame.astype("float64")
    rng = np.random.default_rng(0)
    columns = table.columns.drop(TARGET)
    table[columns] = table[columns].mask(rng.random((len(table), len(columns))) < 0.02)
    table.loc[table.index[::40], "s1"] *= 100
    return table


def split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test rows: every fifth is for the test."""
    test = np.arange(len(table)) % 5 == 0
    return table[~test], table[test]


class Preprocessor:
    """Outliers to the Tukey fences, infinities and gaps to the median, then scaling; fitted on training rows only.

    Args:
        scaler: "z-score" or "min-max".
    """

    def __init__(self, scaler: str = "z-score") -> None:
        if scaler not in ("z-score", "min-max"):
            raise ValueError(f"scaler must be 'z-score' or 'min-max', got {scaler!r}")
        last = StandardScaler() if scaler == "z-score" else MinMaxScaler()
        self._pipeline: Pipeline = make_pipeline(SimpleImputer(strategy="median"), last)
        self._fences: tuple[pd.Series, pd.Series] | None = None

    def fit(self, table: pd.DataFrame) -> Preprocessor:
        """Learn fences, medians and scales from the features of `table`."""
        known = table.replace([np.inf, -np.inf], np.nan)
        low, high = known.quantile(0.25), known.quantile(0.75)
        self._fences = (low - 1.5 * (high - low), high + 1.5 * (high - low))
        self._pipeline.fit(self._clip(known))
        return self

    def __call__(self, table: pd.DataFrame) -> np.ndarray:
        """float64[rows, features], finite whatever came in."""
        return self._pipeline.transform(self._clip(table.replace([np.inf, -np.inf], np.nan)))

    def _clip(self, table: pd.DataFrame) -> pd.DataFrame:
        if self._fences is None:
            raise RuntimeError("the preprocessor is not fitted; call fit(training_table) first")
        return table.clip(*self._fences, axis=1)


def to_tensor(values: np.ndarray) -> Tensor:
    """float32 of what the pipeline gave.

    Raises:
        ValueError: a value is NaN or infinite, or too large for float32.
    """
    tensor = torch.as_tensor(np.asarray(values, dtype="float64")).float()
    if not torch.isfinite(tensor).all():
        raise ValueError("the table holds NaN or infinite values; impute or drop them first")
    return tensor


def batches(table: pd.DataFrame, preprocess: Preprocessor, batch_size: int = 32) -> list[Batch]:
    """(rows float[batch, features], targets float[batch]); targets in hundreds."""
    rows = to_tensor(preprocess(table.drop(columns=TARGET)))
    targets = to_tensor(table[TARGET].to_numpy() / 100)
    return list(zip(rows.split(batch_size), targets.split(batch_size), strict=True))


def train_and_test(scaler: str = "z-score", batch_size: int = 32) -> tuple[list[Batch], list[Batch]]:
    """Batches of both splits of the raw table, scaled by what the training split says."""
    train, test = split(raw_table())
    preprocess = Preprocessor(scaler).fit(train.drop(columns=TARGET))
    return batches(train, preprocess, batch_size), batches(test, preprocess, batch_size)
