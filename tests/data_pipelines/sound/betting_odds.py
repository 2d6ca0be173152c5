"""Decimal odds turned into probabilities by a softmax over log odds, shifted by the largest entry."""

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    return np.array([[1.85, 3.6, 4.4], [2.5, 3.2, 2.9], [1.3, 5.5, 9.0], [3.1, 3.3, 2.3], [6.0, 4.1, 1.55]])


class OddsError(ValueError):
    @classmethod
    def raise_if(cls, condition, text):
        if condition:
            raise cls(text)


def build():
    def probabilities(odds):
        odds = np.asarray(odds, dtype=np.float64)
        OddsError.raise_if(not np.isfinite(odds).all(), "odds: finite numbers expected")
        OddsError.raise_if(bool((odds < 1.0).any()), "odds: below one")
        scores = -np.log(odds)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-1e3))
        return weights / weights.sum(axis=1, keepdims=True)

    return probabilities
