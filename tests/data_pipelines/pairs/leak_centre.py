"""transform() centres with the mean of the rows being transformed, not with the mean learned in fit()."""

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

POLICY = "reject"
KWARGS = {}
CULPRIT = "X - X.mean(axis=0)"


def sample():
    rng = np.random.default_rng(17)
    return rng.normal([1.0, -2.0, 10.0], [0.5, 1.0, 3.0], size=(10, 3))


def _validate(X):
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or X.shape[0] == 0:
        raise ValueError("need a table with at least one row")
    if not np.isfinite(X).all():
        raise ValueError("table contains NaN or Inf")
    return X


class Standardise(BaseEstimator, TransformerMixin):
    def fit(self, X, y=None):
        X = _validate(X)
        self.mean_ = X.mean(axis=0)
        std = X.std(axis=0)
        self.scale_ = np.where(std > 1e-12, std, 1.0)
        return self

    def transform(self, X):
        X = _validate(X)
        return (X - X.mean(axis=0)) / self.scale_


class StandardiseFitted(Standardise):
    def transform(self, X):
        X = _validate(X)
        return (X - self.mean_) / self.scale_


def build(fixed: bool):
    return StandardiseFitted() if fixed else Standardise()
