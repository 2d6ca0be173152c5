"""Derived columns of an order table, returned as a DataFrame with the caller's index."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}


def sample():
    return pd.DataFrame(
        {"qty": [1, 4, 2, 10, 3], "price": [9.5, 2.25, 30.0, 1.1, 12.0], "paid": [9.5, 9.0, 55.0, 11.0, 36.0]},
        index=[10, 11, 15, 16, 30],
    )


def build():
    def derive(orders):
        raw = orders[["qty", "price", "paid"]].to_numpy(dtype=float)
        if not ((raw >= 0) & (raw <= 1e7)).all():
            raise ValueError("orders hold missing or impossible values")
        out = pd.DataFrame(raw, columns=["qty", "price", "paid"], index=orders.index)
        due = raw[:, 0] * raw[:, 1]
        out["due"] = due
        out["discount"] = np.where(due > 0, 1.0 - raw[:, 2] / np.where(due > 0, due, 1.0), 0.0)
        if not np.isfinite(out["discount"].to_numpy()).all():
            raise OverflowError("discount not representable")
        return out

    return derive
