"""Sessions are pooled by dividing by their length, so an empty session yields NaN."""

import math

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "/ count"


def sample():
    return [[0.5, 1.5, 2.0], [3.0], [1.0, 4.0], [2.5, 2.5, 2.5, 0.5]]


def build(fixed):
    def pool(sessions):
        width = max((len(s) for s in sessions), default=0)
        values = torch.zeros(len(sessions), width, dtype=torch.float64)
        mask = torch.zeros(len(sessions), width, dtype=torch.float64)
        for i, s in enumerate(sessions):
            for j, v in enumerate(s):
                if not math.isfinite(v) or abs(v) > 1e12:
                    raise ValueError(f"bad value {v!r} in session {i}")
                values[i, j] = v
                mask[i, j] = 1.0
        count = mask.sum(dim=1)
        if fixed:
            count = count.clamp(min=1.0)
        return (values * mask).sum(dim=1) / count

    return pool
