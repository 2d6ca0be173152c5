"""Mean and scale are cached from the first batch before it is checked, so a refused first batch stays in the cache."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "self.remember(x)  # first batch"


def sample():
    rng = np.random.default_rng(31)
    return rng.normal(50.0, 9.0, size=(7, 2))


class FirstBatchScaler:
    """Scales everything with the statistics of the first batch it sees."""

    def __init__(self, late):
        self.late = late
        self.stats = None

    def remember(self, x):
        if self.stats is None:
            self.stats = x.mean(axis=0), np.maximum(x.std(axis=0), 1.0)

    def __call__(self, x):
        x = np.asarray(x, dtype=float)
        if x.ndim != 2 or len(x) == 0:
            raise ValueError("empty batch")
        if not self.late:
            self.remember(x)  # first batch
        if not ((x > 0) & (x < 200)).all():
            raise ValueError("value missing or out of range")
        self.remember(x)
        mean, scale = self.stats
        return (x - mean) / scale


def build(fixed):
    return FirstBatchScaler(late=fixed)
