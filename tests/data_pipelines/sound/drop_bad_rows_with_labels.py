"""Drops rows with unusable features or labels, keeping features and labels together."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}


def sample():
    return pd.DataFrame(
        {"f1": [0.2, 0.5, 0.9, 0.1, 0.4, 0.8], "f2": [12.0, 15.0, 9.0, 11.0, 14.0, 10.0], "label": [0, 1, 1, 0, 1, 0]}
    )


def build():
    def select(df):
        num = df[["f1", "f2", "label"]].apply(lambda c: pd.to_numeric(c, errors="coerce"))
        x = num.to_numpy(dtype=float, na_value=np.nan)
        keep = (np.abs(x[:, :2]) < 1e6).all(axis=1) & np.isin(x[:, 2], (0.0, 1.0))
        out = pd.DataFrame(x[keep, :2], columns=["f1", "f2"], index=df.index[keep])
        out["label"] = x[keep, 2].astype(np.int64)
        return out

    return select
