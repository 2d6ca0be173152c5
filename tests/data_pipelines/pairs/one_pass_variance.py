"""The variance is E[x^2] - E[x]^2 in float32: it overflows for large values and cancels below zero."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "(x * x).mean(axis=0) - mean * mean"


def sample():
    rng = np.random.default_rng(27)
    return rng.normal([1013.0, 20.0], [4.0, 2.0], size=(10, 2)).astype(np.float32)


def _batch(batch):
    x = np.asarray(batch, dtype=np.float32)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError("expected a non-empty (rows, features) batch")
    if not np.isfinite(x).all():
        raise ValueError("batch is not finite")
    return x


def whiten(batch):
    x = _batch(batch)
    mean = x.mean(axis=0)
    var = (x * x).mean(axis=0) - mean * mean
    return (x - mean) / np.sqrt(var + 1e-6)


def whiten_two_pass(batch):
    x = _batch(batch).astype(np.float64)
    mean = x.mean(axis=0)
    var = ((x - mean) ** 2).mean(axis=0)
    return ((x - mean) / np.sqrt(var + 1e-6)).astype(np.float32)


def build(fixed: bool):
    return whiten_two_pass if fixed else whiten
