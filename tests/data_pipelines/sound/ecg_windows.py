"""A trace cut into overlapping windows, each one brought to zero mean and bounded by its own peak."""

import numpy as np

POLICY = "reject"
KWARGS = {}
SIZE, STEP = 4, 2


def sample():
    t = np.linspace(0.0, 3.0, 12)
    return 0.8 * np.sin(5.0 * t) + 0.1 * np.cos(17.0 * t)


def windows(trace):
    trace = np.asarray(trace, dtype=np.float64)
    if trace.ndim != 1 or len(trace) < SIZE:
        raise ValueError("trace too short")
    if np.isnan(trace).any() or np.isinf(trace).any():
        raise ValueError("trace has gaps")
    view = np.lib.stride_tricks.sliding_window_view(trace, SIZE)[::STEP]
    centred = view - view.mean(axis=1, keepdims=True)
    peak = np.abs(centred).max(axis=1, keepdims=True)
    return np.divide(centred, peak, out=np.zeros_like(centred), where=peak > 0)


def build():
    return windows
