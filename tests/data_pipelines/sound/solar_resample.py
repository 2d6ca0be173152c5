"""Solar power by hour: broken readings become gaps, gaps are filled forwards, then backwards, then with zero."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}


def sample():
    return pd.DataFrame(
        {
            "east": [0.0, 1.5, 3.2, 4.1, 3.9, 2.2, 0.7, 0.1],
            "west": [0.0, 0.4, 1.1, 2.6, 4.0, 4.4, 2.9, 0.9],
        }
    )


def repair(column):
    values = pd.to_numeric(column, errors="coerce").astype(np.float64)
    return values.where(np.isfinite(values) & (values.abs() <= 50.0)).ffill().bfill().fillna(0.0)


def build():
    def resample(power):
        tidy = power.reset_index(drop=True).apply(repair).astype(np.float64)
        step = np.arange(len(tidy)) // 2
        hourly = tidy.groupby(step).transform("mean")
        return hourly.to_numpy(dtype=np.float64)

    return resample
