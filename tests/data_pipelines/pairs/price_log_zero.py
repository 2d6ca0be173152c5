"""The price check lets a price of exactly zero through, and the log turns it into -inf."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "np.log("


def sample():
    return np.array([[12.5, 3.0, 1.0], [9.9, 1.0, 0.0], [101.0, 2.0, 1.0], [45.2, 7.0, 0.0], [7.3, 4.0, 1.0]])


def build(fixed):
    def features(rows):
        rows = np.asarray(rows, dtype=float)
        if rows.ndim != 2 or rows.shape[1] != 3:
            raise ValueError(f"expected (n, 3) rows, got {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("price table holds missing values")
        price, qty, promo = rows.T
        if fixed:
            invalid = price <= 0
        else:
            invalid = price < 0
        if invalid.any():
            raise ValueError("bad price")
        logp = np.log(price)
        return np.column_stack([logp, np.clip(qty, -1e6, 1e6) / 10.0, promo])

    return features
