"""Iterative imputation after limiting the range."""

import numpy as np
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

POLICY = "sanitize"
KWARGS = {}


def sample():
    rng = np.random.default_rng(20)
    base = rng.normal(size=(12, 1))
    return np.hstack([base, base * 2 + rng.normal(0, 0.1, (12, 1)), rng.normal(size=(12, 1))])


def limit(X):
    X = np.array(X, dtype=np.float64)
    X[~np.isfinite(X)] = np.nan
    return np.clip(X, -1e4, 1e4)


def finite(X):
    if not np.isfinite(X).all():
        raise ValueError("imputation did not converge")
    return X


def build():
    return make_pipeline(
        FunctionTransformer(limit),
        IterativeImputer(max_iter=3, random_state=0, keep_empty_features=True, min_value=-1e4, max_value=1e4),
        FunctionTransformer(finite),
    )
