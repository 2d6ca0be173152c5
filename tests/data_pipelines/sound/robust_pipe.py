"""RobustScaler behind an explicit check."""

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, RobustScaler

POLICY = "reject"
KWARGS = {}


def sample():
    rng = np.random.default_rng(3)
    return rng.lognormal(0, 1, size=(10, 4))


def finite(X):
    X = np.asarray(X, dtype=np.float64)
    if not np.isfinite(X).all():
        raise ValueError("table is not finite")
    return X


def build():
    return make_pipeline(FunctionTransformer(finite), RobustScaler(), FunctionTransformer(finite))
