"""Missing readings are found with isnan, so infinite readings stay in the output."""

import numpy as np

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "np.isnan(out)"

MEDIANS = np.array([21.5, 0.45, 1013.0], dtype=np.float32)


def sample():
    return np.array(
        [
            [20.1, 0.41, 1011.2],
            [21.7, 0.46, 1012.8],
            [22.4, 0.50, 1014.1],
            [19.8, 0.39, 1010.0],
            [23.0, 0.52, 1016.3],
        ]
    )


def fill_readings(readings):
    out = np.array(readings, dtype=np.float32)
    missing = np.isnan(out)
    return np.where(missing, MEDIANS, out)


def fill_bad_readings(readings):
    with np.errstate(over="ignore"):
        out = np.array(readings, dtype=np.float32)
    missing = ~np.isfinite(out)
    return np.where(missing, MEDIANS, out)


def build(fixed: bool):
    return fill_bad_readings if fixed else fill_readings
