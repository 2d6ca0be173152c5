"""Mean and standard deviation are taken from the whole table before it is split."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "source = table[:]"


def sample():
    rng = np.random.default_rng(13)
    return rng.normal([0.0, 10.0], [1.0, 4.0], size=(12, 2))


def build(fixed):
    def prepare(table):
        table = np.asarray(table, dtype=float)
        if table.ndim != 2 or len(table) < 4:
            raise ValueError("need at least four rows to split")
        if not (np.abs(table) < 1e8).all():
            raise ValueError("table holds missing or absurd values")
        cut = int(len(table) * 0.75)
        if fixed:
            source = table[:cut]
        else:
            source = table[:]
        mu, sd = source.mean(axis=0), source.std(axis=0)
        z = (table - mu) / np.where(sd > 0, sd, 1.0)
        return z[:cut], z[cut:]

    return prepare
