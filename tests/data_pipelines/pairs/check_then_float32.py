"""Values are checked in float64 and cast to float32 afterwards, so 1e39 becomes inf after the check."""

import numpy as np
import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "np.ascontiguousarray(x, dtype=np.float32)"


def sample():
    rng = np.random.default_rng(11)
    return rng.normal(size=(6, 3)) * 100


def build(fixed):
    def to_tensor(x):
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or not np.isfinite(x).all():
            raise ValueError("feature matrix must be 2-d and finite")
        if fixed and (np.abs(x) > np.finfo(np.float32).max).any():
            raise OverflowError("value does not fit in float32")
        x32 = np.ascontiguousarray(x, dtype=np.float32)
        return torch.from_numpy(x32)

    return to_tensor
