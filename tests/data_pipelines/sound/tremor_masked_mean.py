"""Accelerometer windows with dropouts: dropouts are masked and filled by the mean of the rest of their window."""

import numpy as np

POLICY = "sanitize"
KWARGS = {}


def sample():
    rng = np.random.default_rng(3)
    return rng.normal(scale=0.4, size=(6, 8))


def masked_mean(values, mask):
    count = mask.sum(axis=1, keepdims=True)
    return np.where(mask, values, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)


def build():
    def windows(raw):
        raw = np.array(raw, dtype=np.float64)
        mask = np.isfinite(raw)
        values = np.clip(np.where(mask, raw, 0.0), -16.0, 16.0)
        return np.where(mask, values, masked_mean(values, mask)).astype(np.float32)

    return windows
