"""Min-max scaling divides by zero for a column that is constant in the batch."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "/ (hi - lo)"


def sample():
    return np.array([[1.0, 200.0, 3.5], [2.0, 150.0, 2.5], [4.0, 180.0, 9.0], [3.0, 175.0, 7.5]])


def build(fixed):
    def minmax(x):
        x = np.asarray(x, dtype=float)
        if x.ndim != 2 or len(x) == 0:
            raise ValueError("empty batch")
        if not (np.abs(x) <= 1e15).all():
            raise ValueError("values out of range")
        lo, hi = x.min(axis=0), x.max(axis=0)
        if fixed:
            span = np.where(hi > lo, hi - lo, 1.0)
            return (x - lo) / span
        with np.errstate(invalid="ignore"):
            return (x - lo) / (hi - lo)

    return minmax
