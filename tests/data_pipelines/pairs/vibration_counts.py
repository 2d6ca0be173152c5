"""The counts are cast to int16 before the range is checked, so a huge count wraps around into the allowed range."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "astype(np.int16)  # centred"

OFFSET = 2048
FULL_SCALE = 2047


def sample():
    return np.array(
        [[2050, 2101, 1990], [2033, 2075, 2012], [2048, 1890, 2200], [2111, 2049, 1987], [1999, 2020, 2345]],
        dtype=np.int64,
    )


def _as_integers(counts):
    counts = np.asarray(counts)
    if counts.dtype.kind not in "iu":
        raise TypeError(f"ADC counts must be integers, not {counts.dtype}")
    return counts


def centre_v1(counts):
    codes = (_as_integers(counts) - OFFSET).astype(np.int16)  # centred
    if ((codes > FULL_SCALE) | (codes < -FULL_SCALE - 1)).any():
        raise ValueError("count outside the converter's range")
    return codes


def centre_v2(counts):
    codes = _as_integers(counts) - OFFSET
    if ((codes > FULL_SCALE) | (codes < -FULL_SCALE - 1)).any():
        raise ValueError("count outside the converter's range")
    return codes.astype(np.int16)


def build(fixed):
    return centre_v2 if fixed else centre_v1
