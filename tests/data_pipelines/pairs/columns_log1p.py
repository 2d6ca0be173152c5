"""log1p of a balance below -1 is NaN; the check in front of it only looks for non-finite input."""

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

POLICY = "reject"
KWARGS = {}
CULPRIT = "np.log1p(values)"

MONEY = ["amount", "balance"]


def sample():
    return pd.DataFrame(
        {
            "amount": [12.0, 250.0, 33.5, 8.0, 99.0, 410.0],
            "balance": [1000.0, 52.0, 310.0, 77.5, 640.0, 15.0],
            "kind": ["card", "wire", "card", "cash", "wire", "card"],
        }
    )


def check(frame):
    frame = frame.copy()
    for name in MONEY:
        frame[name] = pd.to_numeric(frame[name]).astype("float64")
        if not np.isfinite(frame[name]).all():
            raise ValueError(f"{name} is not finite")
    for kind in frame["kind"]:
        if not isinstance(kind, str):
            raise TypeError("kind must be a string")
        kind.encode("utf-8")
    return frame


def log_amounts(values):
    return np.log1p(values)


def signed_log_amounts(values):
    return np.sign(values) * np.log1p(np.abs(values))


def build(fixed: bool):
    squash = signed_log_amounts if fixed else log_amounts
    return make_pipeline(
        FunctionTransformer(check),
        make_column_transformer(
            (FunctionTransformer(squash), MONEY),
            (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["kind"]),
        ),
    )
