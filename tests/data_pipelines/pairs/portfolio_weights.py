"""The largest deviation of the weight sums is NaN when a weight is, and NaN > tolerance is false."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "deviation.max() > TOLERANCE"

TOLERANCE = 1e-6


def sample():
    return pd.DataFrame(
        [[0.5, 0.3, 0.2], [0.25, 0.25, 0.5], [0.6, 0.1, 0.3], [0.4, 0.4, 0.2], [0.7, 0.2, 0.1]],
        columns=["stocks", "bonds", "gold"],
    )


def concentration(check):
    def run(weights):
        table = weights.to_numpy(dtype=np.float64)
        if len(table) == 0:
            raise ValueError("no portfolios")
        deviation = np.abs(table.sum(axis=1) - 1.0)
        check(deviation)
        return np.column_stack([np.square(table).sum(axis=1), table.max(axis=1)])

    return run


def check_v1(deviation):
    if deviation.max() > TOLERANCE:
        raise ValueError("weights must add up to one")


def check_v2(deviation):
    if not (deviation <= TOLERANCE).all():
        raise ValueError("weights must add up to one")


def build(fixed):
    return concentration(check_v2 if fixed else check_v1)
