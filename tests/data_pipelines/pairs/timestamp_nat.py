"""A missing timestamp becomes the smallest int64 when the column is viewed as integers."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = '.astype("int64")'


def sample():
    return pd.DataFrame(
        {
            "ts": pd.to_datetime(["2024-01-01 08:00", "2024-01-01 09:30", "2024-01-02 07:15", "2024-01-03 22:40"]),
            "load": [0.4, 0.9, 0.3, 0.7],
        }
    )


def build(fixed):
    def hours(df):
        load = df["load"].to_numpy(dtype=float)
        if not (np.abs(load) <= 1e6).all():
            raise ValueError("load missing or out of range")
        ts = df["ts"]
        if fixed and ts.isna().any():
            raise ValueError("timestamp missing")
        if ts.dtype.kind != "M":
            ts = pd.to_datetime(ts)
        seconds = ts.to_numpy().astype("datetime64[s]").astype("int64")
        return np.column_stack([(seconds // 3600) % 24, np.round(load * 100)])

    return hours
