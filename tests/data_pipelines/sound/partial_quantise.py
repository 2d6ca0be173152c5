"""functools.partial over a quantiser with fixed bin edges."""

from functools import partial

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    return np.array([0.05, 0.3, 0.77, 0.5, 0.92, 0.11])


def quantise(values, edges, strict=True):
    values = np.asarray(values, dtype=float)
    if strict and not ((values >= edges[0]) & (values <= edges[-1])).all():
        raise ValueError("score missing or outside the bins")
    return np.digitize(values, edges).astype(np.int16)


def build():
    return partial(quantise, edges=np.linspace(0, 1, 11))
