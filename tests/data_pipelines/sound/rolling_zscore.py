"""Rolling z-score of a price series that treats flat windows as zero and needs no look-ahead."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}


def sample():
    return pd.DataFrame({"close": [100.0, 101.5, 99.0, 102.0, 104.5, 103.0, 101.0, 105.0]})


def build():
    def signal(df):
        close = df["close"].to_numpy(dtype=float)
        if not ((close > 0) & (close < 1e6)).all():
            raise ValueError("prices must be positive and below a million")
        out = np.zeros(len(close))
        for i in range(len(close)):
            window = close[max(0, i - 3) : i + 1]
            sd = window.std()
            out[i] = (close[i] - window.mean()) / sd if sd > 1e-9 else 0.0
        return pd.DataFrame({"close": close, "z": out}, index=df.index)

    return signal
