"""The module-wide minimum and maximum are widened before the batch is checked and stay NaN after a refused batch."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = '_RANGE["hi"] = np.maximum('

_RANGE = {}


def sample():
    rng = np.random.default_rng(40)
    return rng.uniform(1.0, 9.0, size=(6, 3))


def _batch(batch):
    x = np.asarray(batch, dtype=np.float32).astype(np.float64)
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] != 3:
        raise ValueError("expected a non-empty batch of 3 features")
    return x


def _widen(x):
    _RANGE["hi"] = np.maximum(_RANGE.get("hi", -np.inf), x.max(axis=0))
    _RANGE["lo"] = np.minimum(_RANGE.get("lo", np.inf), x.min(axis=0))


def _scale(x):
    span = _RANGE["hi"] - _RANGE["lo"]
    return ((x - _RANGE["lo"]) / np.where(span > 0, span, 1.0)).astype(np.float32)


def scale(batch):
    x = _batch(batch)
    _widen(x)
    if not np.isfinite(x).all():
        raise ValueError("non-finite values in batch")
    return _scale(x)


def scale_checked(batch):
    x = _batch(batch)
    if not np.isfinite(x).all():
        raise ValueError("non-finite values in batch")
    _widen(x)
    return _scale(x)


def build(fixed: bool):
    _RANGE.clear()
    return scale_checked if fixed else scale
