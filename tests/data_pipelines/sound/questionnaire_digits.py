"""Answers typed as text, parsed to whole numbers from 0 to 10, anything else counts as no answer."""

import numpy as np

POLICY = "sanitize"
KWARGS = {}
NO_ANSWER = -1


def sample():
    return ["7", "10", " 3", "0", "9", "5 "]


def parse(answer):
    if not isinstance(answer, str) or len(answer) > 20:
        return NO_ANSWER
    stripped = answer.strip()
    if not (stripped.isascii() and stripped.isdigit()):
        return NO_ANSWER
    value = int(stripped)
    return value if value <= 10 else NO_ANSWER


def build():
    return lambda answers: np.array([parse(a) for a in answers], dtype=np.int64)
