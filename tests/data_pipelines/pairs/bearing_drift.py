"""The running peak is updated before the batch is checked, so a refused batch poisons all later ones."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "self.update(batch)  # running peak"


def sample():
    return np.array([[61.0, 58.5], [62.4, 59.1], [60.7, 57.9], [63.2, 60.2], [61.9, 58.8], [62.0, 59.5]])


class PeakFeature:
    """Bearing temperatures relative to the highest one seen so far, at least the rated one."""

    rated = 95.0

    def __init__(self):
        self.peak = np.full(2, self.rated)

    def update(self, batch):
        self.peak = np.maximum(self.peak, np.max(batch, axis=0, initial=0.0))

    def check(self, batch):
        if not ((batch >= -60) & (batch <= 250)).all():
            raise ValueError("temperature outside the sensor's range")

    def step(self, batch):
        self.update(batch)  # running peak
        self.check(batch)

    def __call__(self, batch):
        batch = np.asarray(batch, dtype=np.float64)
        self.step(batch)
        return batch / self.peak


class GuardedPeakFeature(PeakFeature):
    def step(self, batch):
        self.check(batch)
        self.update(batch)


def build(fixed):
    return GuardedPeakFeature() if fixed else PeakFeature()
