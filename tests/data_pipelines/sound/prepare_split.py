"""Split first, then learn the fill value and the scale from the training rows."""

import numpy as np
from sklearn.preprocessing import RobustScaler

POLICY = "reject"
KWARGS = {}


def sample():
    rng = np.random.default_rng(81)
    return rng.normal(50, 8, size=(12, 3))


def prepare(table, seed=0):
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or len(table) < 4:
        raise ValueError("need at least 4 rows")
    if not np.isfinite(table).all():
        raise ValueError("table must be finite")
    order = np.random.default_rng(seed).permutation(len(table))
    cut = int(0.75 * len(table))
    train, test = table[order[:cut]], table[order[cut:]]
    scaler = RobustScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def build():
    return prepare
