"""Bad cells are masked, but the result is read from .data, where the masked values still are."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "scaled.data"

CENTER = np.array([10.0, 0.0, -4.0])
SPREAD = np.array([2.0, 1.0, 8.0])


def sample():
    rng = np.random.default_rng(19)
    return rng.normal(CENTER, SPREAD, size=(6, 3))


def to_float(x):
    x = np.asarray(x)
    if x.dtype == object:
        x = np.where(pd.isna(x), np.nan, x)
    return x.astype(np.float64)


def build(fixed):
    def scale(x):
        x = to_float(x)
        if x.ndim != 2 or x.shape[1] != 3:
            raise ValueError("expected three columns")
        masked = np.ma.masked_invalid(x)
        scaled = (masked - CENTER) / SPREAD
        if fixed:
            return scaled.filled(0.0)
        return scaled.data

    return scale
