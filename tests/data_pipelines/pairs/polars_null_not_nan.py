"""Only NaN is looked for; a polars null is not NaN and reaches the array as NaN."""

import numpy as np
import polars as pl

POLICY = "reject"
KWARGS = {}
CULPRIT = "col.is_nan().any()"


def sample():
    return pl.DataFrame({"speed": [12.0, 31.5, 8.0, 22.0, 17.5], "power": [1.1, 2.9, 0.7, 2.0, 1.5]})


def build(fixed):
    def to_matrix(df):
        cols = []
        for name in ("speed", "power"):
            col = df[name]
            if not col.dtype.is_numeric():
                raise TypeError(f"{name} is not numeric")
            if fixed and col.null_count():
                raise ValueError(f"{name} has nulls")
            if col.dtype.is_float() and (col.is_nan().any() or col.is_infinite().any()):
                raise ValueError(f"{name} is not finite")
            cols.append(col.to_numpy().astype(np.float64))
        return np.column_stack(cols)

    return to_matrix
