"""64 bit user and item ids of a click log are cast to int32 without a range check and wrap around."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = ".astype(np.int32)"


def sample():
    return pd.DataFrame(
        {
            "user_id": [101, 17, 33, 101, 98, 5],
            "item_id": [9001, 42, 77, 31337, 42, 8],
            "dwell": [3.5, 0.2, 11.0, 7.4, 1.1, 2.0],
        }
    )


def as_ids(col):
    ids = col.to_numpy()
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{col.name} must hold integers")
    return ids


def build(fixed):
    limit = np.iinfo(np.int32).max

    def to_arrays(log):
        out = {}
        for name in ("user_id", "item_id"):
            ids = as_ids(log[name])
            if (ids < 0).any():
                raise ValueError("negative id")
            if fixed and (ids > limit).any():
                raise OverflowError(f"{name} does not fit in int32")
            out[name] = ids.astype(np.int32)
        dwell = log["dwell"].to_numpy(dtype=float)
        if not ((dwell >= 0) & (dwell < 1e6)).all():
            raise ValueError("bad dwell time")
        out["dwell"] = np.log1p(dwell)
        return out

    return to_arrays
