"""Images are only checked for finite values; anything outside 0..1 wraps around in uint8."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = ".astype(np.uint8)"


def sample():
    rng = np.random.default_rng(1)
    return rng.uniform(0.0, 1.0, size=(4, 5, 5))


def build(fixed):
    def encode(img):
        img = np.asarray(img, dtype=float)
        if img.ndim != 3:
            raise ValueError("expected N x H x W")
        if not np.isfinite(img).all():
            raise ValueError("image holds NaN or Inf")
        if fixed and ((img < 0) | (img > 1)).any():
            raise ValueError("image is not in 0..1")
        return np.rint(img * 255.0).astype(np.uint8)

    return encode
