"""Doubled page visits removed with pandas method chaining, then dwell times put on a log scale."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}


def sample():
    return pd.DataFrame(
        {
            "user": ["u1", "u2", "u1", "u3", "u2", "u1"],
            "page": ["/", "/cart", "/", "/help", "/pay", "/pay"],
            "dwell_s": [3.5, 12.0, 3.5, 40.0, 7.5, 22.0],
        }
    )


def require(frame):
    for name in ("user", "page"):
        for value in frame[name]:
            if not isinstance(value, str):
                raise TypeError(f"{name}: text expected")
            value.encode("utf-8")
    dwell = frame["dwell_s"].to_numpy(dtype=np.float64)
    if not (np.isfinite(dwell) & (dwell >= 0)).all():
        raise ValueError("dwell_s: finite and not negative expected")
    return frame.assign(dwell_s=dwell)


def build():
    return lambda visits: (
        visits.pipe(require)
        .drop_duplicates()
        .reset_index(drop=True)
        .assign(log_dwell=lambda d: np.log1p(d["dwell_s"]))
        .loc[:, ["log_dwell"]]
    )
