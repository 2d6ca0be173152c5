"""A dataclass record batch goes in, a dataclass with normalised arrays comes out."""

from dataclasses import dataclass, replace

import numpy as np

POLICY = "reject"
KWARGS = {}


@dataclass
class Trips:
    distance: np.ndarray
    minutes: np.ndarray
    city: str


def sample():
    return Trips(np.array([1.2, 8.5, 3.3, 12.0]), np.array([6.0, 25.0, 11.0, 34.0]), "Lyon")


def build():
    def normalise(trips):
        d = np.asarray(trips.distance, dtype=float)
        m = np.asarray(trips.minutes, dtype=float)
        if d.shape != m.shape:
            raise ValueError("distance and minutes differ in length")
        if not ((d >= 0) & (d < 1e6)).all() or not ((m > 0) & (m < 1e6)).all():
            raise ValueError("trip outside the plausible range")
        if not isinstance(trips.city, str):
            raise TypeError("city must be text")
        trips.city.encode("utf-8")
        return replace(trips, distance=np.log1p(d), minutes=np.log(m))

    return normalise
