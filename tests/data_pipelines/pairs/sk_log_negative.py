"""StandardScaler behind the log refuses Inf but lets the NaN of a negative amount through."""

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

POLICY = "reject"
KWARGS = {}
CULPRIT = "FunctionTransformer(np.log)"


def sample():
    return pd.DataFrame({"amount": [12.0, 55.5, 8.0, 130.0, 21.0, 64.0], "age": [33.0, 41.0, 29.0, 52.0, 47.0, 38.0]})


def require_numbers(df):
    values = df[["amount", "age"]].to_numpy(dtype=float)
    if len(values) == 0 or not (np.abs(values) < 1e9).all():
        raise ValueError("amount and age must be finite and below 1e9")
    return pd.DataFrame(values, columns=["amount", "age"])


def positive_log(df):
    values = np.asarray(df, dtype=float)
    if (values <= 0).any():
        raise ValueError("amount must be positive")
    return np.log(values)


def build(fixed):
    if fixed:
        log_step = FunctionTransformer(positive_log)
    else:
        log_step = FunctionTransformer(np.log)
    amount = Pipeline([("log", log_step), ("scale", StandardScaler())])
    columns = ColumnTransformer([("amount", amount, ["amount"]), ("age", StandardScaler(), ["age"])])
    return Pipeline([("check", FunctionTransformer(require_numbers)), ("columns", columns)]).fit(sample())
