"""A reading is replaced only if it is falsy, but NaN counts as true and stays."""

import math

import numpy as np

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "if value else"

DEFAULTS = {"temp_c": 12.0, "wind_ms": 3.0, "pressure_hpa": 1013.0}
BOUNDS = {"temp_c": (-90.0, 60.0), "wind_ms": (0.0, 120.0), "pressure_hpa": (800.0, 1100.0)}


def sample():
    return [
        {"temp_c": 14.2, "wind_ms": 2.5, "pressure_hpa": 1009.0},
        {"temp_c": 17.8, "wind_ms": 4.1, "pressure_hpa": 1016.5},
        {"temp_c": 9.6, "wind_ms": 7.7, "pressure_hpa": 998.2},
        {"temp_c": 11.1, "wind_ms": 1.2, "pressure_hpa": 1021.0},
    ]


class StationReader:
    def choose(self, key, value):
        return value if value else DEFAULTS[key]

    def field(self, key, value):
        value = self.choose(key, value)
        low, high = BOUNDS[key]
        if value > high:
            return high
        return low if value < low else value

    def __call__(self, records):
        rows = [[float(self.field(key, record.get(key))) for key in DEFAULTS] for record in records]
        return np.array(rows, dtype=np.float64).reshape(-1, len(DEFAULTS))


class CarefulStationReader(StationReader):
    def choose(self, key, value):
        known = isinstance(value, (int, float)) and not math.isnan(value)
        return value if known else DEFAULTS[key]


def build(fixed):
    return CarefulStationReader() if fixed else StationReader()
