"""The test part gets a scaler of its own, fitted on the test rows."""

import numpy as np
from sklearn.preprocessing import StandardScaler

POLICY = "reject"
KWARGS = {}
CULPRIT = "StandardScaler().fit(test)"


def sample():
    rng = np.random.default_rng(8)
    return rng.normal(3, 2, size=(8, 3)), rng.normal(4, 3, size=(4, 3))


def checked(x):
    x = np.asarray(x, dtype=float)
    if x.ndim != 2 or len(x) == 0 or not (np.abs(x) < 1e9).all():
        raise ValueError("unusable split")
    return x


def build(fixed):
    def prepare(parts):
        train, test = (checked(p) for p in parts)
        scaler = StandardScaler().fit(train)
        train_z = scaler.transform(train)
        if not fixed:
            scaler = StandardScaler().fit(test)
        return train_z, scaler.transform(test)

    return prepare
