"""A scikit-learn pipeline whose first step refuses what StandardScaler would let pass."""

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

POLICY = "reject"
KWARGS = {}


def sample():
    rng = np.random.default_rng(60)
    return rng.normal([3.0, -8.0, 120.0], [1.0, 2.0, 25.0], size=(9, 3))


def require_finite(X):
    X = np.asarray(X, dtype=np.float64)
    if not np.isfinite(X.sum(axis=1)).all() or not np.isfinite(X).all():
        raise ValueError("measurement is not finite")
    return X


def squash(X):
    return np.tanh(X / 5.0)


def build():
    return Pipeline(
        [
            ("check", FunctionTransformer(require_finite)),
            ("scale", StandardScaler()),
            ("squash", FunctionTransformer(squash)),
        ]
    )
