"""The click-through rate divides by the impressions, which may be zero for a fresh banner."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "ctr=lambda d: d.clicks / d.impressions"


def sample():
    return pd.DataFrame(
        {
            "impressions": [1200, 540, 88, 2310, 760, 15],
            "clicks": [36, 11, 2, 80, 19, 1],
            "cost_cents": [510, 190, 33, 1270, 255, 9],
        }
    )


def checked(stats):
    values = stats.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("banner statistics must be finite")
    if (values < 0).any():
        raise ValueError("banner statistics must not be negative")
    return pd.DataFrame(values, columns=list(stats.columns))


def rates_v1(stats):
    return (
        checked(stats)
        .assign(ctr=lambda d: d.clicks / d.impressions)
        .assign(spend=lambda d: np.log1p(d.cost_cents))
        .loc[:, ["ctr", "spend"]]
    )


def rates_v2(stats):
    return (
        checked(stats)
        .assign(ctr=lambda d: (d.clicks + 1.0) / (d.impressions + 50.0))
        .assign(spend=lambda d: np.log1p(d.cost_cents))
        .loc[:, ["ctr", "spend"]]
    )


def build(fixed):
    return rates_v2 if fixed else rates_v1
