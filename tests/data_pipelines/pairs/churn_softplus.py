"""Softplus written as log(1 + exp(x)) overflows to infinity for large arguments."""

from dataclasses import dataclass, field

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "np.log1p(np.exp(hazard))"


@dataclass
class HazardConfig:
    slope: np.ndarray = field(default_factory=lambda: np.array([0.08, -0.4, 1.3]))
    bias: float = -1.5


def sample():
    return np.array([[30.0, 2.0, 1.0], [12.0, 5.0, 0.5], [64.0, 1.0, 2.0], [7.0, 3.0, 1.5], [41.0, 4.0, 0.2]])


class Hazard:
    def __init__(self, config):
        self.config = config

    def positive(self, hazard):
        return np.log1p(np.exp(hazard))

    def __call__(self, usage):
        usage = np.asarray(usage, dtype=np.float64)
        if not np.isfinite(usage).all():
            raise ValueError("usage must be finite")
        return self.positive(usage * self.config.slope + self.config.bias)


class StableHazard(Hazard):
    def positive(self, hazard):
        return np.logaddexp(0.0, hazard)


def build(fixed):
    return (StableHazard if fixed else Hazard)(HazardConfig())
