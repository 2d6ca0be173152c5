"""Offset-corrected detector counts can be negative, and a fractional power of a negative number is NaN."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "frames ** (1.0 / GAMMA)"

GAMMA = 2.2


def sample():
    rng = np.random.default_rng(8)
    return rng.uniform(0.05, 0.95, size=(4, 3, 3))


def require_finite(step):
    def checked(frames):
        frames = np.asarray(frames, dtype=np.float64)
        if not np.isfinite(frames).all():
            raise ValueError("dead pixel in frame")
        return step(frames)

    return checked


@require_finite
def gamma_v1(frames):
    return frames ** (1.0 / GAMMA)


@require_finite
def gamma_v2(frames):
    return np.sign(frames) * np.abs(frames) ** (1.0 / GAMMA)


def build(fixed):
    return gamma_v2 if fixed else gamma_v1
