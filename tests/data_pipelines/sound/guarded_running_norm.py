"""Running mean and variance that are updated only after the batch has been accepted."""

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    rng = np.random.default_rng(71)
    return rng.normal([2.0, -3.0], [0.5, 1.5], size=(9, 2))


class RunningNorm:
    def __init__(self, momentum=0.1, limit=20.0):
        self.momentum = momentum
        self.limit = limit
        self.mean = np.array([2.0, -3.0])
        self.var = np.array([0.25, 2.25])

    def __call__(self, x):
        x = np.asarray(x, dtype=float)
        if x.ndim != 2 or x.shape[1] != 2 or len(x) == 0:
            raise ValueError("expected (n, 2)")
        if not (np.abs(x) <= self.limit).all():
            raise ValueError("reading outside the sensor's range")
        self.mean += self.momentum * (x.mean(axis=0) - self.mean)
        self.var += self.momentum * (x.var(axis=0) - self.var)
        return (x - self.mean) / np.sqrt(self.var + 1e-6)


def build():
    return RunningNorm()
