"""cabin_temp may be NaN, but skipping it in the check also lets Inf through."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {"allow_nan": ("cabin_temp",)}
CULPRIT = 'frame.drop(columns="cabin_temp")'


def sample():
    return pd.DataFrame(
        {
            "speed": [61.0, 72.5, 55.2, 80.1, 64.4],
            "rpm": [1800.0, 2100.0, 1650.0, 2400.0, 1900.0],
            "cabin_temp": [21.0, np.nan, 22.5, 20.5, 21.8],
        }
    )


def read(frame):
    return frame[["speed", "rpm", "cabin_temp"]].apply(pd.to_numeric).astype("float64")


def telemetry(frame):
    frame = read(frame)
    if not np.isfinite(frame.drop(columns="cabin_temp")).all(axis=None):
        raise ValueError("speed and rpm must be finite")
    return frame / {"speed": 100.0, "rpm": 1000.0, "cabin_temp": 20.0}


def telemetry_strict(frame):
    frame = read(frame)
    if not np.isfinite(frame.drop(columns="cabin_temp")).all(axis=None) or np.isinf(frame["cabin_temp"]).any():
        raise ValueError("speed and rpm must be finite, cabin_temp finite or missing")
    return frame / {"speed": 100.0, "rpm": 1000.0, "cabin_temp": 20.0}


def build(fixed: bool):
    return telemetry_strict if fixed else telemetry
