"""Per-channel normalisation as a class with __slots__."""

import numpy as np

POLICY = "sanitize"
KWARGS = {}


def sample():
    rng = np.random.default_rng(37)
    return rng.uniform(0, 1, size=(5, 4, 4, 3)).astype(np.float32)


class ChannelNorm:
    __slots__ = ("mean", "std")

    def __init__(self, mean=(0.48, 0.45, 0.4), std=(0.22, 0.22, 0.22)):
        self.mean = np.asarray(mean, dtype=np.float32)
        self.std = np.asarray(std, dtype=np.float32)

    def __call__(self, images):
        images = np.asarray(images, dtype=np.float32)
        if images.ndim != 4:
            raise ValueError("expected (n, h, w, c)")
        images = np.where(np.isfinite(images), images, self.mean)
        return (np.clip(images, 0.0, 1.0) - self.mean) / self.std


def build():
    return ChannelNorm()
