"""The guard before the logarithm lets a price of exactly zero pass, so the log return becomes infinite."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "(quotes < 0)"


def sample():
    return pd.DataFrame(
        {
            "EURUSD": [1.081, 1.084, 1.079, 1.090, 1.092, 1.088],
            "GBPUSD": [1.262, 1.259, 1.266, 1.271, 1.268, 1.275],
            "USDJPY": [151.2, 150.8, 151.9, 152.4, 151.1, 150.3],
        }
    )


def to_matrix(frame):
    quotes = frame.to_numpy(dtype=np.float64)
    if not np.isfinite(quotes).all():
        raise ValueError("quotes contain missing or infinite values")
    return quotes


def log_returns_v1(frame):
    quotes = to_matrix(frame)
    if (quotes < 0).any():
        raise ValueError("quotes must be positive")
    return np.diff(np.log(quotes), axis=0)


def log_returns_v2(frame):
    quotes = to_matrix(frame)
    if (quotes <= 0).any():
        raise ValueError("quotes must be positive")
    return np.diff(np.log(quotes), axis=0)


def build(fixed):
    return log_returns_v2 if fixed else log_returns_v1
