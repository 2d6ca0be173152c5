"""Seismogram cleaner: nan_to_num with explicit bounds, clipping before the cast to single precision."""

import numpy as np
import torch

POLICY = "sanitize"
KWARGS = {}
BOUND = 5.0e4


def sample():
    t = np.arange(12, dtype=np.float64)
    return np.stack([np.sin(t * k / 3.0) * 10.0 * k for k in (1, 2, 3, 4)], axis=1)


def build():
    def to_tensor(traces):
        traces = np.array(traces, dtype=np.float64)
        traces = np.nan_to_num(traces, nan=0.0, posinf=BOUND, neginf=-BOUND)
        return torch.from_numpy(np.clip(traces, -BOUND, BOUND)).to(torch.float32) / BOUND

    return to_tensor
