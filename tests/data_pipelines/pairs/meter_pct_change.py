"""The relative change after a reading of zero is infinite, and fillna repairs only NaN."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}
CULPRIT = ".pct_change().fillna(0.0)"


def sample():
    return pd.DataFrame(
        {
            "kitchen": [1.2, 1.4, 0.9, 1.1, 2.3, 1.8, 1.5],
            "heating": [5.5, 5.1, 6.2, 7.0, 6.6, 5.9, 6.1],
        }
    )


def readings(table):
    return (
        table.apply(pd.to_numeric, errors="coerce")
        .astype(np.float64)
        .replace([np.inf, -np.inf], np.nan)
        .ffill()
        .bfill()
        .fillna(0.0)
    )


def change_v1(table):
    return readings(table).pct_change().fillna(0.0)


def change_v2(table):
    return readings(table).pct_change().replace([np.inf, -np.inf], np.nan).fillna(0.0)


def build(fixed):
    return change_v2 if fixed else change_v1
