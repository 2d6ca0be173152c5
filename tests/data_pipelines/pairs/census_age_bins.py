"""digitize sorts NaN into the topmost bin, so persons of unknown age are counted as the oldest."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "np.digitize(ages, EDGES)"

EDGES = np.array([18.0, 30.0, 45.0, 65.0])


def sample():
    return {
        "age": np.array([17.0, 25.0, 39.0, 52.0, 71.0, 33.0]),
        "income": np.array([400.0, 2100.0, 3500.0, 4100.0, 1900.0, 2800.0]),
    }


def one_hot(index, width):
    return (index[:, None] == np.arange(width)[None, :]).astype(np.float64)


def bins_v1(ages):
    return np.digitize(ages, EDGES)


def bins_v2(ages):
    if not ((ages >= 0) & (ages < 130)).all():
        raise ValueError("age: missing or impossible")
    return np.searchsorted(EDGES, ages, side="right")


def build(fixed):
    bins = bins_v2 if fixed else bins_v1

    def encode(people):
        ages = np.asarray(people["age"], dtype=np.float64)
        income = np.asarray(people["income"], dtype=np.float64)
        if not np.isfinite(income).all():
            raise ValueError("income: must be finite")
        return np.concatenate([one_hot(bins(ages), len(EDGES) + 1), np.arcsinh(income)[:, None]], axis=1)

    return encode
