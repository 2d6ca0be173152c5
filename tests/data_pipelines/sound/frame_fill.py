"""Clean a frame and return a frame: fill with known medians, clip to the physical range."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}

RANGES = {"temp": (-60.0, 60.0, 15.0), "rain": (0.0, 500.0, 0.0)}


def sample():
    return pd.DataFrame(
        {
            "temp": [14.0, 17.5, 9.0, 21.0, 12.5],
            "rain": [0.0, 3.2, 12.0, 0.4, 1.1],
        },
        index=[10, 11, 12, 13, 14],
    )


def clean(frame):
    out = {}
    for name, (low, high, median) in RANGES.items():
        col = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype="float64", na_value=np.nan)
        col = np.where(np.isfinite(col), col, median)
        out[name] = np.clip(col, low, high)
    return pd.DataFrame(out, index=frame.index)


def build():
    return clean
