"""Results are cached under the pickled input; only successful results are kept."""

import hashlib
import pickle

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    return {"left": [1.0, 2.5, 3.0, 4.5], "right": [0.5, 1.5, 2.0, 8.0]}


class CachedRatio:
    def __init__(self):
        self._cache = {}

    def _compute(self, record):
        left = np.asarray(record["left"], dtype=np.float64)
        right = np.asarray(record["right"], dtype=np.float64)
        if left.shape != right.shape:
            raise ValueError("left and right differ in length")
        for name, side in (("left", left), ("right", right)):
            if not np.isfinite(side).all():
                raise ValueError(f"{name} has NaN or Inf")
        total = np.abs(left) + np.abs(right)
        return left / np.where(total > 0, total, 1.0)

    def __call__(self, record):
        key = hashlib.sha256(pickle.dumps(record)).digest()
        if key not in self._cache:
            self._cache[key] = pickle.dumps(self._compute(record))
        return pickle.loads(self._cache[key])


def build():
    return CachedRatio()
