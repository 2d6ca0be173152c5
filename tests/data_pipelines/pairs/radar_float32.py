"""nan_to_num replaces infinity by the largest double, which becomes infinite again in single precision."""

import numpy as np
import torch

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "np.nan_to_num(echoes)"

LIMIT = 1e6


def sample():
    rng = np.random.default_rng(4)
    return rng.normal(size=(6, 4))


def as_double(echoes):
    return np.array(echoes, dtype=np.float64)


def to_tensor_v1(echoes):
    echoes = as_double(echoes)
    echoes = np.nan_to_num(echoes)
    return torch.from_numpy(echoes.astype(np.float32))


def to_tensor_v2(echoes):
    echoes = np.nan_to_num(as_double(echoes), nan=0.0, posinf=LIMIT, neginf=-LIMIT)
    return torch.from_numpy(np.clip(echoes, -LIMIT, LIMIT).astype(np.float32))


def build(fixed):
    return to_tensor_v2 if fixed else to_tensor_v1
