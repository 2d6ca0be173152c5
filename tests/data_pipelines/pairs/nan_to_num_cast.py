"""nan_to_num replaces Inf by the largest float64, which the cast to float32 turns back into Inf."""

import numpy as np
import torch

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "np.nan_to_num(values)"


def sample():
    rng = np.random.default_rng(2)
    return rng.normal(size=(6, 4))


def to_features(table):
    values = np.asarray(table, dtype=np.float64)
    values = np.nan_to_num(values)
    return torch.from_numpy(values.astype(np.float32))


def to_finite_features(table):
    values = np.asarray(table, dtype=np.float64)
    values = np.nan_to_num(values.astype(np.float32))
    return torch.from_numpy(values)


def build(fixed: bool):
    return to_finite_features if fixed else to_features
