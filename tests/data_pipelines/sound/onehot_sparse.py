"""One-hot encoding to a sparse matrix; unknown categories give a row of zeros."""

import pandas as pd
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

POLICY = "reject"
KWARGS = {}


def sample():
    return pd.DataFrame(
        {
            "city": ["Oslo", "Bergen", "Oslo", "Tromso", "Bergen"],
            "plan": ["free", "pro", "pro", "free", "free"],
        }
    )


def strings(frame):
    for name in ("city", "plan"):
        for row, value in enumerate(frame[name]):
            if not isinstance(value, str):
                raise TypeError(f"{name}, row {row}: expected text")
            value.encode("utf-8")
    return frame[["city", "plan"]].astype(object)


def build():
    return make_pipeline(FunctionTransformer(strings), OneHotEncoder(handle_unknown="ignore"))
