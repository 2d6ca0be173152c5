"""Levels are only limited upwards, so a -Inf dB reading (digital silence) goes through."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "db.max() > 140"


def sample():
    return np.array([[-20.0, -33.5], [-12.0, -60.0], [-3.0, -41.0], [-55.0, -18.0], [-9.0, -27.0], [-31.0, -24.5]])


def check_levels(db):
    if np.isnan(db).any():
        raise ValueError("NaN level")
    if db.max() > 140:
        raise ValueError("level above 140 dB")


class LevelNorm:
    def __init__(self, strict_floor):
        self.strict_floor = strict_floor

    def __call__(self, db):
        db = np.asarray(db, dtype=float)
        if db.size == 0:
            raise ValueError("no frames")
        check_levels(db)
        if self.strict_floor and db.min() < -1000:
            raise ValueError("level below the noise floor")
        return db / 60.0 + 1.0


def build(fixed):
    return LevelNorm(strict_floor=fixed)
