"""transform() takes medians and quartiles from the rows being transformed instead of the fitted ones."""

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted

POLICY = "reject"
KWARGS = {}
CULPRIT = "median, width = self._statistics(X)  # scale"


def sample():
    rng = np.random.default_rng(21)
    return rng.normal([140.0, 4.2, 9.4], [3.0, 0.4, 0.5], size=(10, 3))


class LabScaler(TransformerMixin, BaseEstimator):
    def _statistics(self, X):
        low, median, high = np.percentile(X, [25, 50, 75], axis=0)
        return median, np.maximum(high - low, 1e-9)

    def fit(self, X, y=None):
        X = check_array(X, dtype=np.float64)
        self.median_, self.width_ = self._statistics(X)
        return self

    def transform(self, X):
        check_is_fitted(self, "median_")
        X = check_array(X, dtype=np.float64)
        median, width = self._statistics(X)  # scale
        return (X - median) / width


class FittedLabScaler(LabScaler):
    def transform(self, X):
        check_is_fitted(self, "median_")
        X = check_array(X, dtype=np.float64)
        return (X - self.median_) / self.width_


def build(fixed):
    return FittedLabScaler() if fixed else LabScaler()
