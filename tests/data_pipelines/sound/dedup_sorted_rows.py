"""Removes duplicate rows and returns the rest sorted by time."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}


def sample():
    return pd.DataFrame({"t": [5, 1, 3, 3, 2, 4], "v": [0.5, 0.1, 0.3, 0.3, 0.2, 0.4]})


def build():
    def tidy(events):
        values = events[["t", "v"]].to_numpy(dtype=float)
        if not np.isfinite(values).all():
            raise ValueError("events hold gaps")
        tidy_events = pd.DataFrame(values, columns=["t", "v"]).drop_duplicates()
        return tidy_events.sort_values("t", kind="stable").reset_index(drop=True)

    return tidy
