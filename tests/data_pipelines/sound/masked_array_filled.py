"""Works on a masked array internally and fills the masked cells with the training mean at the end."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}

MEAN = np.array([4.0, -2.0, 0.5])
STD = np.array([2.0, 1.0, 0.25])


def sample():
    rng = np.random.default_rng(64)
    return rng.normal(MEAN, STD, size=(7, 3))


def to_float(x):
    x = np.asarray(x)
    if x.dtype == object:
        x = np.where(pd.isna(x), np.nan, x)
    return x.astype(np.float64)


def build():
    def scale(x):
        x = to_float(x)
        if x.ndim != 2 or x.shape[1] != 3:
            raise ValueError("three columns expected")
        bad = ~(np.abs(x) < 1e8)
        m = np.ma.array(np.where(bad, 0.0, x), mask=bad)
        return ((m - MEAN) / STD).filled(0.0)

    return scale
