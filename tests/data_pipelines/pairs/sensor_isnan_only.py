"""Only NaN is refused, so an infinite sensor reading is scaled and passed on."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "np.isnan(x)"

MEAN = np.array([20.0, 1013.0, 40.0, 3.0])
STD = np.array([5.0, 12.0, 15.0, 2.0])


def sample():
    rng = np.random.default_rng(3)
    return rng.normal(MEAN, STD, size=(8, 4))


def build(fixed):
    def standardise(x):
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != 4:
            raise ValueError("need four sensor channels")
        bad = ~np.isfinite(x) if fixed else np.isnan(x)
        if bad.any():
            raise ValueError(f"{int(bad.sum())} unusable readings")
        return (x - MEAN) / STD

    return standardise
