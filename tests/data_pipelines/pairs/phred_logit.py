"""A base quality of 0 means error probability 1, whose log-odds are infinite."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "np.log(p / (1.0 - p))"


def sample():
    return np.array(
        [
            [30, 32, 28, 12],
            [40, 38, 35, 20],
            [25, 22, 18, 9],
            [37, 36, 30, 15],
            [33, 31, 29, 27],
        ]
    )


def error_rate(quality):
    q = np.asarray(quality)
    if q.dtype.kind not in "iu":
        raise TypeError("Phred qualities are integers")
    if ((q < 0) | (q > 93)).any():
        raise ValueError("Phred quality outside 0..93")
    return 10.0 ** (-q / 10.0)


def log_odds(quality):
    p = error_rate(quality)
    return np.log(p / (1.0 - p))


def log_odds_bounded(quality):
    p = np.minimum(error_rate(quality), 0.999)
    return np.log(p / (1.0 - p))


def build(fixed: bool):
    return log_odds_bounded if fixed else log_odds
