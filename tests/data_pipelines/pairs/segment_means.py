"""Mean spend per segment is NaN for every segment that does not occur in the batch."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = ".mean()"

SEGMENTS = ["new", "regular", "vip"]


def sample():
    return pd.DataFrame(
        {"segment": ["new", "vip", "regular", "new", "regular", "vip"], "spend": [10.0, 250.0, 60.0, 15.0, 75.0, 310.0]}
    )


def build(fixed):
    def profile(df):
        spend = df["spend"].to_numpy(dtype=float)
        if not (np.abs(spend) < 1e9).all():
            raise ValueError("spend missing or absurd")
        if not df["segment"].isin(SEGMENTS).all():
            raise ValueError("unknown segment")
        seg = pd.Categorical(df["segment"], categories=SEGMENTS)
        groups = pd.Series(spend).groupby(seg, observed=False)
        means = groups.mean()
        if fixed:
            means = means.fillna(0.0)
        return means.to_numpy()

    return profile
