"""Lagged and rolling features of a series; rows depend on their neighbours on purpose."""

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin

POLICY = "reject"
KWARGS = {}


def sample():
    return pd.DataFrame({"demand": [12.0, 15.0, 14.0, 18.0, 21.0, 19.0, 23.0, 22.0, 25.0, 24.0]})


class Lags(BaseEstimator, TransformerMixin):
    def __init__(self, lags=(1, 2), window=3):
        self.lags = lags
        self.window = window

    def _series(self, frame):
        values = pd.to_numeric(frame["demand"]).to_numpy(dtype="float64")
        if not len(values):
            raise ValueError("empty series")
        if not np.isfinite(values).all():
            raise ValueError("demand must be finite")
        return pd.Series(values)

    def fit(self, frame, y=None):
        self.level_ = float(self._series(frame).mean())
        return self

    def transform(self, frame):
        s = self._series(frame) - self.level_
        out = {"now": s}
        for lag in self.lags:
            out[f"lag{lag}"] = s.shift(lag).fillna(0.0)
        out["smooth"] = s.rolling(self.window, min_periods=1).mean()
        return pd.DataFrame(out)


def build():
    return Lags()
