"""A city that is not in the lookup table maps to NaN."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = ".map(POPULATION)"

POPULATION = {"Oslo": 0.7, "Bergen": 0.29, "Trondheim": 0.21, "Bodo": 0.05}


def sample():
    return pd.DataFrame(
        {"city": ["Oslo", "Bodo", "Bergen", "Oslo", "Trondheim"], "rent": [14.0, 8.5, 11.0, 15.5, 10.0]}
    )


def build(fixed):
    def encode(df):
        rent = df["rent"].to_numpy(dtype=float)
        if not (np.abs(rent) < 1e6).all():
            raise ValueError("rent missing")
        for name in df["city"].tolist():
            if not isinstance(name, str):
                raise TypeError("city is missing")
            name.encode("utf-8")
            if fixed and name not in POPULATION:
                raise ValueError(f"unknown city {name!r}")
        pop = df["city"].map(POPULATION).to_numpy(dtype=float)
        return np.column_stack([pop, rent])

    return encode
