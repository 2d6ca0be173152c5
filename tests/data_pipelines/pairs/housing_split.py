"""The scale is taken from training and test rows together."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "pd.concat([train, test])"


def sample():
    return {
        "train": pd.DataFrame({"area": [54.0, 80.0, 120.0, 66.0, 95.0, 72.0], "rooms": [2.0, 3.0, 5.0, 2.0, 4.0, 3.0]}),
        "test": pd.DataFrame({"area": [88.0, 61.0, 140.0, 77.0], "rooms": [3.0, 2.0, 6.0, 4.0]}),
    }


def clean(name, part):
    values = part.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: values must be finite")
    return pd.DataFrame(values, columns=list(part.columns))


def scale(part, reference):
    spread = reference.std(ddof=0).clip(lower=1e-9)
    return ((part - reference.mean()) / spread).to_numpy()


def prepare_v1(parts):
    train, test = clean("train", parts["train"]), clean("test", parts["test"])
    if len(train) == 0:
        raise ValueError("train: no rows")
    everything = pd.concat([train, test])
    return scale(train, everything), scale(test, everything)


def prepare_v2(parts):
    train, test = clean("train", parts["train"]), clean("test", parts["test"])
    if len(train) == 0:
        raise ValueError("train: no rows")
    return scale(train, train), scale(test, train)


def build(fixed):
    return prepare_v2 if fixed else prepare_v1
