"""Credit table split by position; the scaler sees training rows only, also when it clips the test rows."""

import numpy as np
import pandas as pd
from sklearn.preprocessing import StandardScaler

POLICY = "reject"
KWARGS = {}


def sample():
    rng = np.random.default_rng(50)
    return pd.DataFrame(
        {
            "age": rng.integers(20, 70, size=12).astype(float),
            "debt": rng.gamma(2.0, 3000.0, size=12),
            "late": rng.poisson(1.5, size=12).astype(float),
        }
    )


class Splitter:
    def __init__(self, share=0.75, limit=10.0):
        self.share = share
        self.limit = limit

    def numbers(self, table):
        values = table.to_numpy(dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("credit table must be finite")
        return values

    def __call__(self, table):
        values = self.numbers(table)
        cut = int(len(values) * self.share)
        if cut < 2:
            raise ValueError("too few rows to split")
        scaler = StandardScaler().fit(values[:cut])
        return tuple(
            np.clip(scaler.transform(part), -self.limit, self.limit) if len(part) else part
            for part in (values[:cut], values[cut:])
        )


def build():
    return Splitter()
