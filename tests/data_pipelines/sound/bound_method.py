"""A bound method of a preprocessing object with clipped percentiles."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}


def sample():
    rng = np.random.default_rng(50)
    return rng.normal(size=(8, 3)).astype(np.float32)


class Preprocessor:
    def __init__(self, low, high):
        self.low = np.float32(low)
        self.high = np.float32(high)

    def winsorise(self, x):
        x = np.asarray(x)
        if x.dtype == object:
            x = np.where(pd.isna(x), np.nan, x)
        mid = (self.low + self.high) / 2
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        x = np.where(np.isnan(x), mid, x)
        return np.clip(x, self.low, self.high)


def build():
    return Preprocessor(-3.0, 3.0).winsorise
