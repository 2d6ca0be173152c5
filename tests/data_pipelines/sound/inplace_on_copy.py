"""Turbine readings repaired in place, but on a copy, by column limits and column defaults."""

import numpy as np

POLICY = "sanitize"
KWARGS = {}

LOW = np.array([0.0, -30.0, 0.0])
HIGH = np.array([40.0, 60.0, 3000.0])
DEFAULT = np.array([8.0, 12.0, 900.0])


def sample():
    return np.array(
        [[7.2, 11.0, 850.0], [9.8, 10.5, 1320.0], [3.1, 14.2, 210.0], [12.4, 9.9, 2100.0], [6.6, 12.8, 705.0]]
    )


def repair(table):
    for column, (low, high, default) in zip(table.T, zip(LOW, HIGH, DEFAULT)):
        column[~np.isfinite(column)] = default
        np.clip(column, low, high, out=column)
    table -= LOW
    table /= HIGH - LOW
    return table


def build():
    return lambda readings: repair(np.array(readings, dtype=np.float64, copy=True)).astype(np.float32)
