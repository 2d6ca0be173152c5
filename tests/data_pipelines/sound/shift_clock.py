"""Start times of shifts as sine and cosine of the local hour; missing times are refused first."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}


def sample():
    return pd.DataFrame(
        {
            "start": pd.to_datetime(["2024-02-05 06:00", "2024-02-05 14:00", "2024-02-06 22:00", "2024-02-07 06:30"]),
            "zone_hours": [1.0, -5.0, 9.0, 5.5],
        }
    )


class MissingTime(ValueError):
    """A shift without a start."""


def encode(shifts):
    start = pd.to_datetime(shifts["start"])
    if start.isna().any():
        raise MissingTime("start is missing")
    zone = shifts["zone_hours"].to_numpy(dtype=np.float64)
    if not (np.abs(zone) <= 14.0).all():
        raise ValueError("zone_hours: no such offset")
    hours = start.dt.hour.to_numpy() + start.dt.minute.to_numpy() / 60.0 + zone
    angle = 2.0 * np.pi * (hours % 24.0) / 24.0
    return np.column_stack([np.sin(angle), np.cos(angle)])


def build():
    return encode
