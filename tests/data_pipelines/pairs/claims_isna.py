"""The completeness check uses isna(), which does not count Inf as missing."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "table.isna()"

NUMERIC = ["amount", "age", "months"]


def sample():
    return pd.DataFrame(
        {
            "amount": [120.5, 80.0, 430.2, 99.9, 15.0, 260.0],
            "age": [34.0, 51.0, 27.0, 45.0, 62.0, 38.0],
            "months": [12.0, 3.0, 24.0, 7.0, 1.0, 18.0],
        }
    )


def _numeric(frame):
    return frame[NUMERIC].apply(pd.to_numeric).astype(np.float64)


def load_claims(frame):
    table = _numeric(frame)
    if table.isna().any().any():
        raise ValueError("claims contain missing values")
    return (table / [100.0, 50.0, 12.0]).to_numpy()


def load_claims_strict(frame):
    table = _numeric(frame)
    if not np.isfinite(table.to_numpy()).all():
        raise ValueError("claims contain missing or infinite values")
    return (table / [100.0, 50.0, 12.0]).to_numpy()


def build(fixed: bool):
    return load_claims_strict if fixed else load_claims
