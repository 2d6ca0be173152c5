"""Daily turnover with lags and a rolling mean; the gaps at the start are filled by the day itself."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}


def sample():
    return pd.DataFrame(
        {
            "turnover": [812.0, 930.5, 777.0, 1010.2, 995.0, 860.4, 1104.9],
            "visitors": [45.0, 52.0, 40.0, 61.0, 58.0, 47.0, 66.0],
        }
    )


def checked(days):
    values = days.to_numpy(dtype=np.float64)
    bad = ~np.isfinite(values) | (np.abs(values) > 1e12)
    if bad.any():
        raise ValueError(f"{int(bad.sum())} readings missing or impossible")
    return pd.DataFrame(values, columns=["turnover", "visitors"])


def lagged(days):
    return (
        checked(days)
        .assign(
            before=lambda d: d["turnover"].shift(1).fillna(d["turnover"]),
            smooth=lambda d: d["turnover"].rolling(3, min_periods=1).mean(),
            per_head=lambda d: d["turnover"] / (d["visitors"].clip(lower=0) + 1.0),
        )
        .astype(np.float64)
    )


def build():
    return lagged
