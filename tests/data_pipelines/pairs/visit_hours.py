"""A missing time stamp (NaT) becomes hour 0 through fillna instead of being refused."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "dt.hour.fillna(0)"


def sample():
    return pd.DataFrame(
        {
            "arrived": pd.to_datetime(
                [
                    "2024-03-01 08:15",
                    "2024-03-01 09:40",
                    "2024-03-02 13:05",
                    "2024-03-03 17:30",
                    "2024-03-04 07:55",
                ]
            ),
            "minutes": [35.0, 12.0, 48.0, 20.0, 65.0],
        }
    )


def minutes(frame):
    values = pd.to_numeric(frame["minutes"]).to_numpy(dtype="float64")
    if not np.isfinite(values).all():
        raise ValueError("minutes must be finite")
    return values


def hours(frame):
    return pd.to_datetime(frame["arrived"]).dt.hour.fillna(0).to_numpy(dtype="float64")


def hours_known(frame):
    arrived = pd.to_datetime(frame["arrived"])
    if arrived.isna().any():
        raise ValueError("arrived is missing")
    return arrived.dt.hour.to_numpy(dtype="float64")


def build(fixed: bool):
    get_hours = hours_known if fixed else hours

    def features(frame):
        angle = get_hours(frame) / 24.0 * 2 * np.pi
        return np.column_stack([np.sin(angle), np.cos(angle), minutes(frame)])

    return features
