"""Results are cached by the bytes of the input, so repeated batches cost nothing."""

import hashlib

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    rng = np.random.default_rng(9)
    return rng.uniform(size=(5, 6))


class CachedSpectrum:
    def __init__(self):
        self.cache = {}

    def __call__(self, x):
        x = np.ascontiguousarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] < 2 or not (np.abs(x) < 1e100).all():
            raise ValueError("signal is not usable")
        key = (x.shape, hashlib.sha1(x.tobytes()).hexdigest())
        if key not in self.cache:
            self.cache[key] = np.abs(np.fft.rfft(x, axis=1))
        return self.cache[key].copy()


def build():
    return CachedSpectrum()
