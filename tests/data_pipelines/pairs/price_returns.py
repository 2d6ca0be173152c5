"""A price of zero makes the next return infinite; only finiteness of the prices is checked."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "prices.pct_change()"


def sample():
    days = pd.date_range("2024-01-01", periods=8)
    return pd.DataFrame(
        {
            "wheat": [5.1, 5.3, 5.2, 5.6, 5.8, 5.7, 5.9, 6.0],
            "corn": [3.2, 3.1, 3.3, 3.4, 3.3, 3.5, 3.6, 3.5],
        },
        index=days,
    )


def load(frame):
    prices = frame.apply(pd.to_numeric).astype("float64")
    if not np.isfinite(prices.to_numpy()).all():
        raise ValueError("prices must be finite")
    return prices


def returns(frame):
    prices = load(frame)
    return prices.pct_change().iloc[1:]


def returns_positive(frame):
    prices = load(frame)
    if (prices <= 0).any().any():
        raise ValueError("prices must be positive")
    return prices.pct_change().iloc[1:]


def build(fixed: bool):
    return returns_positive if fixed else returns
