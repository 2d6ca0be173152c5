"""Cyclic calendar features of a timestamp column that must be complete."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}


def sample():
    return pd.DataFrame(
        {
            "when": pd.to_datetime(["2023-03-01 06:00", "2023-03-01 18:30", "2023-03-04 00:15", "2023-12-31 23:59"]),
            "riders": [12, 48, 5, 130],
        }
    )


def build():
    def features(df):
        when = pd.to_datetime(df["when"])
        if when.isna().any():
            raise ValueError("timestamp missing")
        riders = df["riders"].to_numpy(dtype=float)
        if not ((riders >= 0) & (riders < 1e9)).all():
            raise ValueError("rider count missing or impossible")
        angle = 2 * np.pi * (when.dt.hour + when.dt.minute / 60).to_numpy(dtype=float) / 24
        return np.column_stack(
            [np.sin(angle), np.cos(angle), when.dt.dayofweek.to_numpy(dtype=float), np.log1p(riders)]
        )

    return features
