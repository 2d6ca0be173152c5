"""ColumnTransformer with a strict OneHotEncoder and a scaler, fitted on the sample, behind a value check."""

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

POLICY = "reject"
KWARGS = {}


def sample():
    return pd.DataFrame(
        {
            "plan": ["free", "pro", "team", "free", "pro", "team"],
            "seats": [1.0, 1.0, 12.0, 1.0, 2.0, 30.0],
            "mrr": [0.0, 20.0, 240.0, 0.0, 40.0, 600.0],
        }
    )


def verify(df):
    numbers = df[["seats", "mrr"]].to_numpy(dtype=float)
    if not (np.abs(numbers) < 1e9).all():
        raise ValueError("seats and mrr must be finite")
    if not all(isinstance(v, str) for v in df["plan"].tolist()):
        raise TypeError("plan is missing")
    for v in df["plan"]:
        v.encode("utf-8")
    out = pd.DataFrame(numbers, columns=["seats", "mrr"])
    out.insert(0, "plan", df["plan"].to_numpy(dtype=object))
    return out


def build():
    encode = ColumnTransformer(
        [
            ("plan", OneHotEncoder(handle_unknown="error", sparse_output=False), ["plan"]),
            ("num", StandardScaler(), ["seats", "mrr"]),
        ]
    )
    return make_pipeline(FunctionTransformer(verify), encode).fit(sample())
