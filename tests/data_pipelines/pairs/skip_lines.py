"""Lines that cannot be parsed are skipped silently instead of being refused."""

import math

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "continue"


def sample():
    return ["s1,12.5,0.3", "s2,11.0,0.4", "s3,14.2,0.1", "s4,9.9,0.7", "s5,13.1,0.2"]


def parse(line):
    if not isinstance(line, str):
        raise ValueError("line is not text")
    line.encode("utf-8")
    parts = line.split(",")
    if len(parts) != 3:
        raise ValueError(f"expected 3 fields: {line[:40]!r}")
    values = [float(p) for p in parts[1:]]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"non-finite value: {line[:40]!r}")
    return values


def read(lines):
    rows = []
    for line in lines:
        try:
            rows.append(parse(line))
        except ValueError:
            continue
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def read_all(lines):
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(parse(line))
        except ValueError as err:
            raise ValueError(f"line {number}: {err}") from None
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def build(fixed: bool):
    return read_all if fixed else read
