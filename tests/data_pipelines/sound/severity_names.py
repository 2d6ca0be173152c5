"""Name the severity of every reading; the output is a list of strings."""

import numpy as np

POLICY = "reject"
KWARGS = {}

EDGES = [0.0, 35.0, 55.0, 150.0]
NAMES = ["invalid", "good", "moderate", "unhealthy", "hazardous"]


def sample():
    return np.array([12.0, 40.5, 60.0, 180.0, 33.0, 54.9])


def severity(pm25):
    pm25 = np.asarray(pm25, dtype=np.float64)
    if pm25.ndim != 1 or not np.isfinite(pm25).all():
        raise ValueError("pm25 must be a vector of finite numbers")
    return [NAMES[i] for i in np.digitize(pm25, EDGES)]


def build():
    return severity
