"""Converts id columns to int32 after a range check."""

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    return {"user": np.array([3, 18, 7, 90001, 12]), "item": np.array([55, 2, 2, 871, 30])}


def to_int32(values, name):
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name}: ids must be integers, got {values.dtype}")
    info = np.iinfo(np.int32)
    if values.size and (values.min() < 0 or values.max() > info.max):
        raise OverflowError(f"{name}: id outside 0..{info.max}")
    return values.astype(np.int32)


def build():
    def convert(batch):
        return {name: to_int32(values, name) for name, values in batch.items()}

    return convert
