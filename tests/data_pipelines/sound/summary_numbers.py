"""Summary of a batch as plain Python numbers."""

import math
import statistics

POLICY = "reject"
KWARGS = {}


def sample():
    return [3.5, 4.25, 2.0, 8.75, 5.5, 4.0]


def summarise(values):
    values = [float(v) for v in values]
    if not values:
        raise ValueError("nothing to summarise")
    for i, v in enumerate(values):
        if not math.isfinite(v):
            raise ValueError(f"value {i} is {v}")
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "low": min(values),
        "high": max(values),
        "spread": max(values) - min(values),
    }


def build():
    return summarise
