"""User-item counts as a sparse matrix."""

import numpy as np
from scipy.sparse import csr_matrix

POLICY = "reject"
KWARGS = {}

USERS, ITEMS = 20, 50


def sample():
    return {
        "user": np.array([0, 3, 3, 7, 12], dtype=np.int64),
        "item": np.array([4, 4, 9, 33, 48], dtype=np.int64),
        "weight": np.array([1.0, 2.5, 1.0, 0.5, 3.0]),
    }


def index(values, size, name):
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integer")
    if ((values < 0) | (values >= size)).any():
        raise ValueError(f"{name} out of range")
    return values.astype(np.int32)


def to_csr(log):
    user, item = index(log["user"], USERS, "user"), index(log["item"], ITEMS, "item")
    weight = np.asarray(log["weight"], dtype=np.float32)
    if not (len(user) == len(item) == len(weight)):
        raise ValueError("columns differ in length")
    if not np.isfinite(weight).all():
        raise ValueError("weight must be finite")
    return csr_matrix((weight, (user, item)), shape=(USERS, ITEMS))


def build():
    return to_csr
