"""partial_fit adds the batch to its sums and only then looks for NaN, so a refused batch spoils the fitted mean."""

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

POLICY = "reject"
KWARGS = {}
CULPRIT = "self.total_ = self.total_ + X.sum(axis=0)"


def sample():
    rng = np.random.default_rng(8)
    return rng.gamma(2.0, 1.5, size=(9, 3))


class StreamingCentre(BaseEstimator, TransformerMixin):
    def fit(self, X, y=None):
        X = self._table(X)
        self._require_finite(X)
        self.total_, self.count_ = np.zeros(X.shape[1]), 0
        return self.partial_fit(X)

    def _table(self, X):
        X = np.asarray(X, dtype=np.float64)
        if X.ndim != 2 or len(X) == 0:
            raise ValueError("expected a non-empty 2-d table")
        return X

    def _require_finite(self, X):
        if not np.isfinite(X).all():
            raise ValueError("X contains NaN or Inf")

    def _start(self, X):
        if not hasattr(self, "total_"):
            self.total_, self.count_ = np.zeros(X.shape[1]), 0

    def partial_fit(self, X, y=None):
        X = self._table(X)
        self._start(X)
        self.total_ = self.total_ + X.sum(axis=0)
        self.count_ += len(X)
        self._require_finite(X)
        return self

    def transform(self, X):
        X = self._table(X)
        self._require_finite(X)
        return X - self.total_ / self.count_


class CarefulStreamingCentre(StreamingCentre):
    def partial_fit(self, X, y=None):
        X = self._table(X)
        self._require_finite(X)
        self._start(X)
        self.total_ = self.total_ + X.sum(axis=0)
        self.count_ += len(X)
        return self


def build(fixed: bool):
    return CarefulStreamingCentre() if fixed else StreamingCentre()
