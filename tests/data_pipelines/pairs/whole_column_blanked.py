"""One bad cell blanks the entire column, so the untouched rows lose their values."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "bad.any(axis=0)"


def sample():
    rng = np.random.default_rng(12)
    return rng.uniform(1.0, 9.0, size=(7, 4))


def to_float(x):
    x = np.asarray(x)
    if x.dtype == object:
        x = np.where(pd.isna(x), np.nan, x)
    return x.astype(np.float64)


def build(fixed):
    def blank(x):
        x = to_float(x)
        if x.ndim != 2:
            raise ValueError("expected a matrix")
        bad = ~(np.abs(x) < 1e12)
        if fixed:
            x[bad] = 0.0
        else:
            x[:, bad.any(axis=0)] = 0.0
        return x * 0.1

    return blank
