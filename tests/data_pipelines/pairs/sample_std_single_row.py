"""The batch z-score uses the ddof=1 standard deviation, which is NaN for a batch of one row."""

import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "num.std()"


def sample():
    return pd.DataFrame({"h": [1.7, 1.8, 1.62, 1.75], "w": [70.0, 82.0, 55.0, 74.0], "p": [61.0, 58.0, 70.0, 66.0]})


def build(fixed):
    def zscore(df):
        num = pd.DataFrame(df[["h", "w", "p"]].to_numpy(dtype=float), columns=["h", "w", "p"])
        if num.empty:
            raise ValueError("no rows")
        if not (num.abs() < 1e9).to_numpy().all():
            raise ValueError("missing or absurd measurements")
        sd = num.std(ddof=0) if fixed else num.std()
        sd = sd.mask(sd == 0, 1.0)
        return (num - num.mean()) / sd

    return zscore
