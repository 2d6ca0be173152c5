"""Coordinates are tested for NaN only, and the cosine of an infinite angle is NaN again."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "np.isnan(coords)"


def sample():
    return np.array([[52.52, 13.40], [48.86, 2.35], [35.68, 139.69], [-33.87, 151.21], [40.71, -74.01]])


class SphereEmbedding:
    """Latitude and longitude in degrees to points on the unit sphere."""

    def check(self, coords):
        if np.isnan(coords).any():
            raise ValueError("missing coordinate")

    def __call__(self, coords):
        coords = np.asarray(coords, dtype=np.float64)
        self.check(coords)
        lat, lon = np.deg2rad(coords).T
        return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


class CheckedSphereEmbedding(SphereEmbedding):
    def check(self, coords):
        if not np.isfinite(coords).all():
            raise ValueError("missing or infinite coordinate")


def build(fixed):
    return CheckedSphereEmbedding() if fixed else SphereEmbedding()
