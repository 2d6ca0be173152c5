"""The running mean and variance are updated before the batch is refused, so one NaN batch spoils all later ones."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "self.absorb(x)  # learn"


def sample():
    rng = np.random.default_rng(21)
    return rng.normal([1.0, -2.0, 5.0], [1.0, 0.5, 3.0], size=(10, 3))


class RunningScaler:
    def __init__(self, check_first):
        self.check_first = check_first
        self.n = 0
        self.mean = np.zeros(3)
        self.m2 = np.zeros(3)

    def absorb(self, x):
        for row in x:
            self.n += 1
            delta = row - self.mean
            self.mean = self.mean + delta / self.n
            self.m2 = self.m2 + delta * (row - self.mean)

    def require(self, x):
        if not (np.abs(x) < 50).all():
            raise ValueError("batch out of range")

    def __call__(self, batch):
        x = np.asarray(batch, dtype=float)
        if x.ndim != 2 or x.shape[1] != 3 or len(x) == 0:
            raise ValueError("expected a non-empty (n, 3) batch")
        if self.check_first:
            self.require(x)
            self.absorb(x)
        else:
            self.absorb(x)  # learn
            self.require(x)
        std = np.sqrt(self.m2 / self.n)
        return (x - self.mean) / np.where(std > 1e-9, std, 1.0)


def build(fixed):
    return RunningScaler(check_first=fixed)
