"""The pixel range check is written so that NaN compares false and is accepted."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "(img < 0).any()"


def sample():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, size=(4, 3, 6, 6)).astype(np.float32)


def build(fixed):
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)[:, None, None]
    std = np.array([0.229, 0.224, 0.225], dtype=np.float32)[:, None, None]

    def normalise(images):
        img = np.asarray(images, dtype=np.float32)
        if img.ndim != 4 or img.shape[1] != 3:
            raise ValueError("expected NCHW images")
        if fixed:
            out_of_range = not ((img >= 0) & (img <= 255)).all()
        else:
            out_of_range = (img < 0).any() or (img > 255).any()
        if out_of_range:
            raise ValueError("pixels outside 0..255")
        return (img / np.float32(255) - mean) / std

    return normalise
