"""The clock times are checked with min() and max(), whose comparisons are all false for NaN, so it passes."""

from dataclasses import dataclass

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "min(clock) < 0"

SCORE = {"1-0": 1.0, "0-1": 0.0, "1/2": 0.5}


@dataclass(frozen=True)
class Limits:
    longest: float = 10800.0
    top_rating: int = 3600


def sample():
    return [
        {"rating": 1840, "clock": [179.2, 171.0, 160.4], "result": "1-0"},
        {"rating": 2105, "clock": [180.0, 175.5, 168.1, 140.9], "result": "1/2"},
        {"rating": 1533, "clock": [178.8, 120.2, 88.0], "result": "0-1"},
        {"rating": 2410, "clock": [179.9, 177.3, 175.0, 171.6, 169.0], "result": "1-0"},
    ]


def check_clock_v1(clock, limits):
    if not clock:
        raise ValueError("game without moves")
    if min(clock) < 0 or max(clock) > limits.longest:
        raise ValueError("impossible clock time")


def check_clock_v2(clock, limits):
    if not clock:
        raise ValueError("game without moves")
    if not all(0 <= seconds <= limits.longest for seconds in clock):
        raise ValueError("impossible clock time")


def encode(games, check_clock, limits):
    for game in games:
        rating, clock, result = game["rating"], game["clock"], game["result"]
        if not isinstance(rating, (int, np.integer)):
            raise TypeError("rating must be an integer")
        if not 0 < rating <= limits.top_rating:
            raise ValueError("rating out of range")
        if not isinstance(result, str) or result not in SCORE:
            raise ValueError("unknown result")
        check_clock(clock, limits)
        spent = [a - b for a, b in zip(clock, clock[1:])]
        yield [rating / limits.top_rating, clock[-1] / 60.0, sum(spent) / len(clock), SCORE[result]]


def build(fixed):
    check = check_clock_v2 if fixed else check_clock_v1
    return lambda games: np.array(list(encode(games, check, Limits())), dtype=np.float64).reshape(-1, 4)
