"""Meter gaps are filled forwards only, so a gap at the start of the series survives."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "filled = series.ffill()"


def sample():
    return pd.DataFrame({"kwh": [1.2, 1.4, 1.1, 0.9, 1.6, 2.0, 1.8], "temp": [11.0, 10.5, 10.0, 9.5, 9.0, 9.5, 10.0]})


def build(fixed):
    defaults = {"kwh": 1.4, "temp": 10.0}

    def prepare_series(df):
        out = {}
        for name, default in defaults.items():
            raw = pd.to_numeric(df[name], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
            raw = np.where(np.abs(raw) < 1e5, raw, np.nan)
            series = pd.Series(raw)
            filled = series.ffill()
            if fixed:
                filled = filled.fillna(default)
            out[name] = filled.to_numpy() / default
        return pd.DataFrame(out)

    return prepare_series
