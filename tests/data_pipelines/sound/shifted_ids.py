"""Integer token ids: shift by the number of special tokens and narrow to int32."""

import numpy as np

POLICY = "reject"
KWARGS = {}

SPECIAL = 4


def sample():
    return np.array([[5, 9, 2], [7, 7, 1], [0, 3, 8], [6, 4, 4]])


def shift(ids):
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    limit = np.iinfo(np.int32).max - SPECIAL
    if ids.size and (ids.min() < 0 or ids.max() > limit):
        raise OverflowError("id outside the int32 range")
    return (ids + SPECIAL).astype(np.int32)


def build():
    return shift
