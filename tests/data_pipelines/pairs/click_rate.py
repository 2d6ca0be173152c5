"""The click rate is 0/0 for items that were never shown."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "clicks / views"


def sample():
    return pd.DataFrame({"item": [3, 8, 9, 12, 40], "views": [100, 50, 20, 5, 11], "clicks": [3, 9, 1, 2, 0]})


def build(fixed):
    def rates(df):
        counts = df[["item", "views", "clicks"]].to_numpy(dtype=float)
        if not ((counts >= 0) & (counts < 1e12)).all():
            raise ValueError("counts must be non-negative")
        views, clicks = counts[:, 1], counts[:, 2]
        if ((views == 0) & (clicks > 0)).any():
            raise ValueError("clicks without views")
        if fixed:
            views = np.maximum(views, 1.0)
        return pd.DataFrame({"item": counts[:, 0].astype(np.int64), "ctr": clicks / views})

    return rates
