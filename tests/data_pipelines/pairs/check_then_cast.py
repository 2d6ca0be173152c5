"""The check sees float64 values, the cast to float32 afterwards turns 1e39 into Inf."""

import numpy as np
import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "values.astype(np.float32)"


def sample():
    return [[1.0, 250.0, 3.5], [2.0, 310.0, 4.0], [1.5, 275.0, 3.0], [3.0, 190.0, 2.5]]


def _matrix(rows):
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 3:
        raise ValueError(f"expected rows of 3 numbers, got shape {values.shape}")
    return values


def to_tensor(rows):
    values = _matrix(rows)
    if not np.isfinite(values).all():
        raise ValueError("table contains NaN or Inf")
    return torch.from_numpy(values.astype(np.float32))


def to_tensor_narrow(rows):
    values = _matrix(rows).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("table contains NaN, Inf or numbers too large for float32")
    return torch.from_numpy(values)


def build(fixed: bool):
    return to_tensor_narrow if fixed else to_tensor
