"""Item ids are narrowed with astype(np.int32), an id of 2**31 wraps around to a negative row of the embedding table."""

import numpy as np
import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "ids.astype(np.int32)"


def sample():
    return {
        "user": np.array([3, 3, 7, 9, 12, 12], dtype=np.int64),
        "item": np.array([101, 205, 101, 330, 47, 205], dtype=np.int64),
    }


def _integers(values, name):
    ids = np.asarray(values)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name}: ids must be integers, got {ids.dtype}")
    return ids


def narrow(values, name):
    ids = _integers(values, name)
    return torch.from_numpy(ids.astype(np.int32))


def narrow_checked(values, name):
    ids = _integers(values, name)
    if ids.size and (ids.min() < 0 or ids.max() > np.iinfo(np.int32).max):
        raise OverflowError(f"{name}: id outside the int32 range")
    return torch.from_numpy(ids.astype(np.int32))


def encode_log(log, to_index):
    return {name: to_index(values, name) for name, values in log.items()}


def build(fixed: bool):
    to_index = narrow_checked if fixed else narrow
    return lambda log: encode_log(log, to_index)
