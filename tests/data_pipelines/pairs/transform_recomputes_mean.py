"""transform centres with the mean of the rows it is given instead of the fitted one."""

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

POLICY = "reject"
KWARGS = {}
CULPRIT = "X - X.mean(axis=0)"


def sample():
    rng = np.random.default_rng(4)
    return rng.gamma(2.0, 3.0, size=(10, 3))


class Centre(TransformerMixin, BaseEstimator):
    def __init__(self, frozen=True):
        self.frozen = frozen

    def _validate(self, X):
        X = np.asarray(X, dtype=float)
        if X.ndim != 2 or X.shape[0] == 0:
            raise ValueError("expected a non-empty matrix")
        if not (np.abs(X) < 1e12).all():
            raise ValueError("X holds non-finite or absurd values")
        return X

    def fit(self, X, y=None):
        X = self._validate(X)
        self.mean_ = X.mean(axis=0)
        sd = X.std(axis=0)
        self.scale_ = np.where(sd > 1e-6, sd, 1.0)
        return self

    def transform(self, X):
        X = self._validate(X)
        if self.frozen:
            centred = X - self.mean_
        else:
            centred = X - X.mean(axis=0)
        return centred / self.scale_


def build(fixed):
    return Centre(frozen=fixed)
