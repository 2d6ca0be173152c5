"""Adds Gaussian jitter and a random sign flip to every row; refuses bad input first."""

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    return np.linspace(-1.0, 1.0, 24).reshape(6, 4)


def build():
    rng = np.random.default_rng()

    def augment(x):
        x = np.asarray(x, dtype=float)
        if x.ndim != 2 or not (np.abs(x) <= 1e12).all():
            raise ValueError("cannot augment non-finite or absurd rows")
        noise = rng.normal(0.0, 0.05, size=x.shape)
        sign = rng.choice([-1.0, 1.0], size=(len(x), 1))
        return sign * (x + noise)

    return augment
