"""Laboratory values may be missing (NaN), the vital signs may not."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {"allow_nan": ("lab_*",)}


def sample():
    return pd.DataFrame(
        {
            "pulse": [71.0, 88.0, 64.0, 95.0, 77.0],
            "lab_crp": [3.0, np.nan, 12.5, np.nan, 1.0],
            "lab_hb": [13.5, 14.1, np.nan, 12.2, 15.0],
        }
    )


def vitals(frame):
    out = frame.apply(pd.to_numeric).astype("float64")
    if np.isinf(out.to_numpy()).any():
        raise ValueError("infinite measurement")
    if out["pulse"].isna().any():
        raise ValueError("pulse is missing")
    return out - pd.Series({"pulse": 75.0, "lab_crp": 4.0, "lab_hb": 13.8})


def build():
    return vitals
