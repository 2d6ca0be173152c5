"""Fit/transform object that returns overlapping windows of a scaled multivariate series."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

POLICY = "reject"
KWARGS = {}


def sample():
    t = np.arange(12.0)
    return np.column_stack([np.sin(t), 0.1 * t, np.cos(t / 2)])


class Windows:
    def __init__(self, width):
        self.width = width

    def _check(self, series):
        series = np.asarray(series, dtype=float)
        if series.ndim != 2:
            raise ValueError("expected time x channels")
        if len(series) < self.width:
            raise ValueError("series shorter than a window")
        if not (np.abs(series) < 1e8).all():
            raise ValueError("series has gaps or spikes")
        return series

    def fit(self, series):
        series = self._check(series)
        self.lo = series.min(axis=0)
        span = series.max(axis=0) - self.lo
        self.span = np.where(span > 1e-8, span, 1.0)
        return self

    def transform(self, series):
        series = (self._check(series) - self.lo) / self.span
        return sliding_window_view(series, self.width, axis=0).transpose(0, 2, 1).copy()


def build():
    return Windows(4).fit(sample())
