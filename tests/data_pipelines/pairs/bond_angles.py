"""The cosine of parallel bonds is rounded to slightly more than one and arccos returns NaN."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "np.arccos(cosines(bonds))"


def sample():
    return np.array(
        [
            [1.02, 0.11, -0.34, 0.55, 0.90, 0.21],
            [0.31, 1.33, 0.42, -0.87, 0.25, 0.63],
            [-0.75, 0.48, 1.10, 0.39, -1.21, 0.17],
            [0.66, -0.92, 0.58, 1.04, 0.33, -0.49],
            [1.19, 0.27, 0.83, 0.12, 0.71, 1.38],
        ]
    )


def unit(vectors):
    length = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    if not np.isfinite(length).all() or (length < 1e-8).any():
        raise ValueError("bond vector without a usable length")
    return vectors / length


def cosines(bonds):
    bonds = np.asarray(bonds, dtype=np.float64)
    if bonds.ndim != 2 or bonds.shape[1] != 6:
        raise ValueError("two bond vectors per row expected")
    if not np.isfinite(bonds).all():
        raise ValueError("coordinates must be finite")
    return (unit(bonds[:, :3]) * unit(bonds[:, 3:])).sum(axis=1)


def angles_v1(bonds):
    return np.degrees(np.arccos(cosines(bonds)))


def angles_v2(bonds):
    cosine = np.clip(cosines(bonds), -1.0, 1.0)
    return np.degrees(np.arccos(cosine))


def build(fixed):
    return angles_v2 if fixed else angles_v1
