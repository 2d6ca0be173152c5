"""Separate inliers from outliers by the median absolute deviation."""

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    return np.array([[1.0, 10.0], [1.2, 11.0], [0.9, 9.5], [1.1, 10.4], [9.0, 10.1], [1.0, 10.8]])


def split(rows, k=6.0):
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError("need a non-empty table")
    if not np.isfinite(rows).all():
        raise ValueError("rows must be finite")
    centre = np.median(rows, axis=0)
    spread = np.median(np.abs(rows - centre), axis=0)
    far = (np.abs(rows - centre) > k * np.maximum(spread, 1e-9)).any(axis=1)
    return rows[~far], rows[far]


def build():
    return split
