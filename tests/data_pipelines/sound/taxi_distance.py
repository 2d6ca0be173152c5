"""Great-circle length of taxi trips; the argument of arcsin is clipped against rounding."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
COLUMNS = ["lat_a", "lon_a", "lat_b", "lon_b"]


def sample():
    return pd.DataFrame(
        [
            [40.71, -74.00, 40.76, -73.98],
            [40.64, -73.78, 40.75, -73.99],
            [40.80, -73.95, 40.73, -74.01],
            [40.69, -73.97, 40.70, -73.92],
        ],
        columns=COLUMNS,
    )


def haversine(lat_a, lon_a, lat_b, lon_b):
    half = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2) ** 2
    return 2 * 6371.0 * np.arcsin(np.sqrt(np.clip(half, 0.0, 1.0)))


def build():
    def distance(trips):
        degrees = trips[COLUMNS].to_numpy(dtype=np.float64)
        limits = np.array([90.0, 180.0, 90.0, 180.0])
        if not (np.abs(degrees) <= limits).all():
            raise ValueError("coordinate missing or outside the globe")
        return np.log1p(haversine(*np.deg2rad(degrees).T))

    return distance
