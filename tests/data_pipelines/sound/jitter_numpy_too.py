"""Jitter augmentation with its own generator kept in the object."""

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    rng = np.random.default_rng(1)
    return rng.normal(0, 1, (8, 5)).astype(np.float32)


class Jitter:
    def __init__(self, sigma=0.05, seed=0):
        self.sigma = sigma
        self.rng = np.random.default_rng(seed)

    def __call__(self, x):
        x = np.asarray(x, dtype=np.float32)
        if not np.isfinite(x).all():
            raise ValueError("NaN or Inf in signal")
        noise = self.rng.normal(0.0, self.sigma, x.shape)
        gain = self.rng.uniform(0.9, 1.1)
        out = ((x + noise) * gain).astype(np.float32)
        if not np.isfinite(out).all():
            raise OverflowError("signal too large to augment")
        return out


def build():
    return Jitter()
