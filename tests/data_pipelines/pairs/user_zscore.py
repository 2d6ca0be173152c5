"""The per-user standard deviation is NaN for a user with a single rating."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = 'transform("std")'


def sample():
    return pd.DataFrame(
        {
            "user": ["ann", "ann", "bob", "bob", "bob", "eve", "eve"],
            "rating": [4.0, 2.0, 5.0, 3.5, 1.0, 3.0, 4.5],
        }
    )


def read(log):
    for user in log["user"]:
        if not isinstance(user, str):
            raise TypeError("user must be a string")
        user.encode("utf-8")
    out = pd.DataFrame(
        {
            "user": list(log["user"]),
            "rating": pd.to_numeric(log["rating"]).to_numpy(dtype="float64"),
        }
    )
    if not np.isfinite(out["rating"]).all():
        raise ValueError("rating is NaN or Inf")
    return out


def normalise(log):
    log = read(log)
    by_user = log.groupby("user")["rating"]
    std = by_user.transform("std")
    log["z"] = (log["rating"] - by_user.transform("mean")) / std.clip(lower=1e-6)
    return log


def normalise_single(log):
    log = read(log)
    by_user = log.groupby("user")["rating"]
    std = by_user.transform("std").fillna(1.0)
    log["z"] = (log["rating"] - by_user.transform("mean")) / std.clip(lower=1e-6)
    return log


def build(fixed: bool):
    return normalise_single if fixed else normalise
