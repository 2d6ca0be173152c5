"""Bad rows are dropped and the features renumbered, but the labels keep the old index and are aligned to NaN."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}
CULPRIT = 'feats["label"] = labels'


def sample():
    return pd.DataFrame(
        {
            "a": [0.1, 0.4, 0.9, 0.3, 0.7, 0.2],
            "b": [5.0, 3.0, 8.0, 1.0, 9.0, 4.0],
            "label": [0.0, 1.0, 1.0, 0.0, 1.0, 0.0],
        }
    )


def build(fixed):
    def training_table(df):
        num = df.apply(lambda c: pd.to_numeric(c, errors="coerce")).reset_index(drop=True)
        values = num.to_numpy(dtype=float, na_value=np.nan)
        keep = (np.abs(values) < 1e9).all(axis=1)
        feats = pd.DataFrame(values[keep][:, :2], columns=["a", "b"])
        labels = pd.Series(values[:, 2])[keep]
        if fixed:
            labels = labels.reset_index(drop=True)
        feats["label"] = labels
        return feats

    return training_table
