"""NaT becomes the smallest 64-bit integer when times are cast, so missing times pass as very old ones."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = '.astype("int64")'


def sample():
    return pd.DataFrame(
        {
            "committed": pd.to_datetime(
                ["2024-03-01 09:12", "2024-03-01 17:40", "2024-03-02 08:05", "2024-03-04 13:30", "2024-03-05 22:15"]
            ).astype("datetime64[ns]"),
            "lines": [120.0, 14.0, 560.0, 33.0, 8.0],
        }
    )


def seconds_v1(column):
    stamps = pd.to_datetime(column).astype("datetime64[ns]")
    return stamps.to_numpy().astype("int64") / 1e9


def seconds_v2(column):
    stamps = pd.to_datetime(column).astype("datetime64[ns]")
    if stamps.isna().any():
        raise ValueError("committed: missing time")
    return stamps.to_numpy().astype(np.int64) / 1e9


def build(fixed):
    seconds = seconds_v2 if fixed else seconds_v1

    def features(commits):
        lines = commits["lines"].to_numpy(dtype=np.float64)
        if not np.isfinite(lines).all():
            raise ValueError("lines: not finite")
        day = 2 * np.pi * (seconds(commits["committed"]) % 86400.0) / 86400.0
        return np.column_stack([np.sin(day), np.cos(day), np.arcsinh(lines)])

    return features
