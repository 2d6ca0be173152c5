"""nan_to_num in place works on the copy that boolean indexing makes, so the readings stay broken."""

import numpy as np

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "copy=False"

TYPICAL = 5.6


def sample():
    return np.array(
        [[5.1, 6.3, 7.0, 5.8], [4.9, 5.5, 8.1, 6.6], [6.2, 6.0, 5.9, 5.4], [7.7, 9.2, 8.8, 6.9], [5.0, 5.3, 6.1, 5.7]]
    )


class GlucoseCleaner:
    low, high = 1.0, 35.0

    def load(self, readings):
        return np.array(readings, dtype=np.float64, copy=True)

    def repair(self, readings):
        broken = ~np.isfinite(readings)
        np.nan_to_num(readings[broken], copy=False, nan=TYPICAL, posinf=TYPICAL, neginf=TYPICAL)
        return readings

    def __call__(self, readings):
        readings = self.repair(self.load(readings))
        return np.log(np.clip(readings, self.low, self.high))


class WorkingGlucoseCleaner(GlucoseCleaner):
    def repair(self, readings):
        readings[~np.isfinite(readings)] = TYPICAL
        return readings


def build(fixed):
    return WorkingGlucoseCleaner() if fixed else GlucoseCleaner()
