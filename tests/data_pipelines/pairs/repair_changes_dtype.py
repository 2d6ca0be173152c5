"""The repair branch fills with float64 means, so a batch with gaps comes back in another dtype."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "np.where(ok, x, MEANS64)"

MEANS64 = np.array([0.25, -1.5, 3.0])


def sample():
    rng = np.random.default_rng(6)
    return rng.normal(size=(6, 3)).astype(np.float32)


def build(fixed):
    fill = MEANS64.astype(np.float32)

    def repair(x):
        x = np.asarray(x)
        if x.dtype == object:
            x = np.where(pd.isna(x), np.nan, x)
        if x.ndim != 2 or x.shape[1] != 3:
            raise ValueError("expected three features")
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        ok = np.isfinite(x)
        if ok.all():
            return x
        if fixed:
            return np.where(ok, x, fill)
        return np.where(ok, x, MEANS64)

    return repair
