"""The scaler is fitted on the whole table before the split, so test rows shape the training data."""

import numpy as np
from sklearn.preprocessing import StandardScaler

POLICY = "reject"
KWARGS = {}
CULPRIT = "StandardScaler().fit(table)"


def sample():
    rng = np.random.default_rng(4)
    return rng.normal(3.0, 2.0, size=(12, 3))


def _load(table):
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or len(table) < 4:
        raise ValueError("need at least four rows")
    if not np.isfinite(table).all():
        raise ValueError("table contains NaN or Inf")
    return table


def prepare(table):
    table = _load(table)
    cut = int(len(table) * 0.75)
    scaler = StandardScaler().fit(table)
    return scaler.transform(table[:cut]), scaler.transform(table[cut:])


def prepare_clean(table):
    table = _load(table)
    cut = int(len(table) * 0.75)
    scaler = StandardScaler().fit(table[:cut])
    return scaler.transform(table[:cut]), scaler.transform(table[cut:])


def build(fixed: bool):
    return prepare_clean if fixed else prepare
