"""Cosine similarity divides by the norm, which is zero for a user without any rating."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "ratings / norms[:, None]"

PROTOTYPES = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5]])


def sample():
    return np.array(
        [[5.0, 1.0, 2.0, 4.0], [1.0, 4.0, 5.0, 2.0], [3.0, 3.0, 2.0, 4.0], [2.0, 5.0, 4.0, 1.0], [4.0, 2.0, 1.0, 5.0]]
    )


def finite(ratings):
    ratings = np.asarray(ratings, dtype=np.float64)
    if not np.isfinite(ratings).all():
        raise ValueError("rating is not finite")
    return ratings


def similarity(normalise):
    anchors = PROTOTYPES / np.linalg.norm(PROTOTYPES, axis=1, keepdims=True)

    def run(ratings):
        ratings = finite(ratings)
        norms = np.sqrt(np.square(ratings).sum(axis=1))
        unit = normalise(ratings, norms)
        return (unit[:, None, :] * anchors[None, :, :]).sum(axis=-1)

    return run


def by_norm_v1(ratings, norms):
    return ratings / norms[:, None]


def by_norm_v2(ratings, norms):
    return ratings / np.maximum(norms, 1e-12)[:, None]


def build(fixed):
    return similarity(by_norm_v2 if fixed else by_norm_v1)
