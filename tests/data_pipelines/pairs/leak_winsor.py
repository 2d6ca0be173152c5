"""Winsorising bounds are quantiles of all rows, computed before train_test_split."""

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

POLICY = "reject"
KWARGS = {}
CULPRIT = "X.quantile([0.1, 0.9])"


def sample():
    rng = np.random.default_rng(30)
    frame = pd.DataFrame(rng.lognormal(1.0, 0.5, size=(12, 2)), columns=["income", "spend"])
    frame["churn"] = [0, 1] * 6
    return frame


def _read(frame):
    X = frame[["income", "spend"]].apply(pd.to_numeric).astype("float64").reset_index(drop=True)
    y = pd.to_numeric(frame["churn"]).reset_index(drop=True)
    if len(X) < 4:
        raise ValueError("too few rows to split")
    if not np.isfinite(X.to_numpy()).all():
        raise ValueError("non-finite income or spend")
    if not y.isin([0, 1]).all():
        raise ValueError("churn must be 0 or 1")
    return X, y.astype("int64")


def prepare(frame):
    X, y = _read(frame)
    bounds = X.quantile([0.1, 0.9])
    X = X.clip(bounds.loc[0.1], bounds.loc[0.9], axis=1)
    return train_test_split(X, y, test_size=0.25, random_state=0)


def prepare_split_first(frame):
    X, y = _read(frame)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=0)
    bounds = X_train.quantile([0.1, 0.9])
    lo, hi = bounds.loc[0.1], bounds.loc[0.9]
    return X_train.clip(lo, hi, axis=1), X_test.clip(lo, hi, axis=1), y_train, y_test


def build(fixed: bool):
    return prepare_split_first if fixed else prepare
