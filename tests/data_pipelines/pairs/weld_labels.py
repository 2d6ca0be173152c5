"""Class numbers are narrowed to int32 before the range check, so a huge number wraps around to a valid class."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = 'labels = np.asarray(batch["label"]).astype(np.int32)'

CLASSES = 5


def sample():
    return {
        "profile": np.array([[0.2, 1.1, 0.7], [0.5, 0.9, 1.4], [0.1, 0.3, 0.8], [1.2, 0.6, 0.4]]),
        "label": np.array([0, 3, 1, 4], dtype=np.int64),
    }


def profile(batch):
    values = np.asarray(batch["profile"], dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("profile: not finite")
    if (np.abs(values) > 1e4).any():
        raise ValueError("profile: implausible height")
    return values.astype(np.float32)


def in_range(labels):
    if labels.size and (labels.min() < 0 or labels.max() >= CLASSES):
        raise ValueError("label: no such class")
    return labels


def load_v1(batch):
    if np.asarray(batch["label"]).dtype.kind not in "iu":
        raise TypeError("label: integers expected")
    labels = np.asarray(batch["label"]).astype(np.int32)
    return {"x": profile(batch), "y": in_range(labels)}


def load_v2(batch):
    if np.asarray(batch["label"]).dtype.kind not in "iu":
        raise TypeError("label: integers expected")
    labels = in_range(np.asarray(batch["label"]))
    return {"x": profile(batch), "y": labels.astype(np.int32)}


def build(fixed):
    return load_v2 if fixed else load_v1
