"""Scores are wrapped in a Series with a fresh index and aligned against the frame's own index."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "pd.Series(z)"


def sample():
    return pd.DataFrame({"visits": [4, 9, 1, 7, 3], "spend": [20.0, 85.0, 5.5, 61.0, 18.0]})


def build(fixed):
    def add_score(df):
        x = df[["visits", "spend"]].to_numpy(dtype=float)
        if not (np.abs(x) < 1e12).all():
            raise ValueError("visits and spend must be finite")
        z = 0.3 * x[:, 0] + 0.02 * x[:, 1]
        out = pd.DataFrame(x, columns=["visits", "spend"], index=df.index)
        if fixed:
            out["score"] = z
        else:
            out["score"] = pd.Series(z)
        return out

    return add_score
