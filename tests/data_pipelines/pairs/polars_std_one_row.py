"""The sample deviation of a single row is null, so a batch of one row comes out null."""

import numpy as np
import polars as pl

POLICY = "reject"
KWARGS = {}
CULPRIT = "col.std()"


def sample():
    return pl.DataFrame({"x": [1.0, 3.0, 2.5, 8.0, 4.0], "y": [10.0, 14.0, 9.0, 11.0, 13.5]})


def build(fixed):
    def zscore(df):
        if df.height == 0:
            raise ValueError("empty frame")
        out = {}
        for name in ("x", "y"):
            values = np.array([float(v) for v in df[name].to_list()])
            if not (np.abs(values) < 1e9).all():
                raise ValueError(f"{name} is not usable")
            col = pl.Series(name, values)
            if fixed:
                sd = col.std(ddof=0)
            else:
                sd = col.std()
            out[name] = (col - col.mean()) / (1.0 if sd == 0 else sd)
        return pl.DataFrame(out)

    return zscore
