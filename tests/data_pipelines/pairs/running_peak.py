"""The running peak takes in an infinite sample before the clip is refused, and scales all later audio to zero."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "self.peak = max(self.peak, level)  # track"


def sample():
    t = np.arange(64) / 64.0
    return np.stack([0.5 * np.sin(2 * np.pi * f * t) for f in (2, 3, 5, 7)])


class PeakNormaliser:
    def __init__(self, guarded):
        self.guarded = guarded
        self.peak = 1e-3

    def __call__(self, clips):
        clips = np.asarray(clips, dtype=float)
        if clips.ndim != 2 or clips.size == 0:
            raise ValueError("no audio")
        level = float(np.abs(clips).max())
        if self.guarded and not level <= 1.0:
            raise ValueError("clip level out of range")
        self.peak = max(self.peak, level)  # track
        if not (np.abs(clips) <= 1.0).all():
            raise ValueError("clip level out of range")
        return clips / self.peak


def build(fixed):
    return PeakNormaliser(guarded=fixed)
