"""Logarithm of intensities clipped to the detector range."""

import numpy as np

POLICY = "sanitize"
KWARGS = {}


def sample():
    rng = np.random.default_rng(44)
    return rng.lognormal(2, 1, size=(6, 5)).astype(np.float32)


def log_intensity(counts):
    counts = np.asarray(counts, dtype=np.float32)
    counts = np.nan_to_num(counts, nan=1.0, posinf=1e6, neginf=1e-3)
    return np.log10(np.clip(counts, 1e-3, 1e6))


def build():
    return log_intensity
