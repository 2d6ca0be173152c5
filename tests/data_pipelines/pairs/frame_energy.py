"""The log energy of a silent frame is log(0) = -inf."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "np.log(energy)"


def sample():
    rng = np.random.default_rng(3)
    return rng.normal(0.0, 0.3, size=(6, 16)).astype(np.float32)


def _frames(frames):
    frames = np.asarray(frames, dtype=np.float32)
    if frames.ndim != 2:
        raise ValueError(f"expected (frames, samples), got shape {frames.shape}")
    if not np.isfinite(frames).all():
        raise ValueError("audio frames contain NaN or Inf")
    return frames.astype(np.float64)


def log_energy(frames):
    energy = (_frames(frames) ** 2).sum(axis=1)
    return np.log(energy).astype(np.float32)


def log_energy_floored(frames):
    energy = (_frames(frames) ** 2).sum(axis=1)
    return np.log(np.maximum(energy, 1e-10)).astype(np.float32)


def build(fixed: bool):
    return log_energy_floored if fixed else log_energy
