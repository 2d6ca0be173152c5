"""A mutable default list keeps the rows of a refused batch, which then turn up in the next one."""

import math

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "rows=[]"


def sample():
    return [
        {"weight_kg": 1.2, "volume_l": 4.0, "items": 3},
        {"weight_kg": 0.4, "volume_l": 1.5, "items": 1},
        {"weight_kg": 8.9, "volume_l": 22.0, "items": 7},
        {"weight_kg": 2.6, "volume_l": 9.5, "items": 2},
    ]


def row_of(order):
    row = [float(order[key]) for key in ("weight_kg", "volume_l", "items")]
    if not all(map(math.isfinite, row)):
        raise ValueError("order holds a value that is not finite")
    return row


def pack_v1(orders, rows=[]):
    for order in orders:
        rows.append(row_of(order))
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    rows.clear()
    return table


def pack_v2(orders):
    rows = [row_of(order) for order in orders]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def build(fixed):
    return pack_v2 if fixed else pack_v1
