"""np.clip is meant to tame bad values, but it lets NaN pass unchanged."""

from functools import partial

import numpy as np

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "np.clip(z, -limit, limit)"


def sample():
    rng = np.random.default_rng(19)
    return rng.normal([170.0, 70.0], [10.0, 12.0], size=(8, 2))


def standardise(x, mean, std, limit):
    z = (np.asarray(x, dtype=np.float64) - mean) / std
    return np.clip(z, -limit, limit).astype(np.float32)


def standardise_clean(x, mean, std, limit):
    z = (np.asarray(x, dtype=np.float64) - mean) / std
    z = np.where(np.isnan(z), 0.0, z)
    return np.clip(z, -limit, limit).astype(np.float32)


def build(fixed: bool):
    body = dict(mean=np.array([170.0, 70.0]), std=np.array([10.0, 12.0]), limit=6.0)
    return partial(standardise_clean if fixed else standardise, **body)
