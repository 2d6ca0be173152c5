"""Gaps are filled from the neighbouring column instead of with training medians, so a gap in the first column stays."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "ffill(axis=1)"

MEDIANS = {"age": 41.0, "income": 3200.0, "score": 6.0}


def sample():
    return pd.DataFrame(
        {
            "age": [23.0, 35.0, 61.0, 48.0, 30.0],
            "income": [2100.0, 3900.0, 2800.0, 5100.0, 3300.0],
            "score": [4.0, 7.0, 6.0, 9.0, 5.0],
        }
    )


def build(fixed):
    def clean(df):
        num = pd.DataFrame(index=df.index)
        for c in MEDIANS:
            col = pd.to_numeric(df[c], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
            col = np.where(np.isfinite(col), col, np.nan)
            num[c] = np.clip(col, -1e6, 1e6)
        if fixed:
            num = num.fillna(MEDIANS)
        else:
            num = num.ffill(axis=1)
        return num

    return clean
