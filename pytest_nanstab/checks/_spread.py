"""Is a weight's spread the one its initialiser gives? An interval that knows how many numbers it saw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_nanstab.checks._weights import NORMAL, UNIFORM, Expected

FALSE_ALARMS = 1e-4  # per model: chance that a correctly initialised one is accused
TOLERANCE = 0.01  # of the std: padding rows, rounding to half precision, truncated tails
_ENOUGH = 200  # below this a uniform sample's variance has heavier tails than its kurtosis says


@dataclass(frozen=True)
class Measured:
    """Size, mean, standard deviation and largest magnitude of a weight."""

    count: int
    mean: float
    std: float
    largest: float
    fourth: float = NORMAL  # the measured kurtosis

    @property
    def is_zero(self) -> bool:
        """Whether every value is 0."""
        return self.largest == 0

    @property
    def kurtosis(self) -> float:
        """That of the nearer distribution: 1.8 of the uniform, where it is measured as such or no value lies beyond
        what a uniform distribution of this std allows; else 3."""
        bounded = self.largest <= 1.02 * math.sqrt(3) * self.std
        flat = self.fourth < (UNIFORM + NORMAL) / 2 and self.largest <= 1.2 * math.sqrt(3) * self.std
        return UNIFORM if self.count > 16 and (bounded or flat) else NORMAL


def measure(values: Tensor) -> Measured:
    """Moments of finite values; scaled first, so that squares neither overflow nor vanish."""
    plain = values.detach()
    plain = plain if plain.dtype in (torch.float32, torch.float64) else plain.float()
    low, high = torch.aminmax(plain)
    largest = max(abs(float(low)), abs(float(high)))
    if largest == 0:
        return Measured(plain.numel(), 0.0, 0.0, 0.0)
    scaled = plain / largest
    variance, mean = (float(value) for value in torch.var_mean(scaled, correction=0))
    fourth = float((scaled - mean).pow(4).mean()) / variance**2 if variance > 0 else NORMAL
    return Measured(plain.numel(), mean * largest, math.sqrt(variance) * largest, largest, fourth)


def fits(seen: Measured, expected: Expected, *, tests: int, zero_mean: bool = True) -> bool:
    """Whether mean and std are those of `expected`, at `FALSE_ALARMS` over `tests` weights together (Bonferroni)."""
    alpha = FALSE_ALARMS / (2 * max(tests, 1))
    if expected.std == 0 or seen.count < 2:
        return abs(seen.mean) <= expected.std * math.sqrt(2 * math.log(2 / alpha))
    low, high = std_interval(seen.count, expected.kurtosis, alpha)
    inside = low * (1 - TOLERANCE) <= seen.std / expected.std <= high * (1 + TOLERANCE)
    return inside and (not zero_mean or centred(seen, expected.std, alpha))


def centred(seen: Measured, std: float, alpha: float) -> bool:
    """Whether the mean may be 0: |mean| <= std sqrt(2 ln(2/alpha) / n), the sub-Gaussian bound."""
    return abs(seen.mean) <= std * (math.sqrt(2 * math.log(2 / alpha) / seen.count) + TOLERANCE)


def std_interval(count: int, kurtosis: float, alpha: float) -> tuple[float, float]:
    """Where the measured std over the true one lies with probability 1 - alpha or more.

    The variance of n values with kurtosis k has relative variance (k - 1)/n, that of a chi-square with 2n/(k - 1)
    degrees of freedom; small samples get the n - 1 of the normal distribution, whose tails are the heavier ones. The
    Chernoff bound of the chi-square, P <= exp(-dof/2 (x - 1 - ln x)) on either side, holds for every size and is at
    most a tenth wider than the normal quantile for large ones.
    """
    freedom = 2 * count / (kurtosis - 1) if count >= _ENOUGH else max(count - 1, 1)
    excess = 2 / freedom * math.log(2 / alpha)
    return math.sqrt(_root(excess, 0.0, 1.0)), math.sqrt(_root(excess, 2 + 2 * excess + 2 * math.sqrt(excess), 1.0))


def _root(excess: float, far: float, near: float) -> float:
    """The solution of x - 1 - ln x = excess between `far` (where it is larger) and `near`."""
    for _ in range(80):
        middle = (far + near) / 2
        if middle <= 0 or middle - 1 - math.log(middle) > excess:
            far = middle
        else:
            near = middle
    return far


def orthogonal_gain(matrix: Tensor) -> float | None:
    """The gain g with W W^T = g^2 I (of the shorter side), or None; two random vectors are enough to tell."""
    wide = matrix.detach().flatten(1)
    wide = wide if wide.dtype in (torch.float32, torch.float64) else wide.float()
    wide = wide if wide.shape[0] <= wide.shape[1] else wide.T
    tolerance = 1e-2 if matrix.dtype in (torch.float32, torch.float64) else 5e-2
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(wide.shape[0], 2, generator=generator).to(wide)
    image = wide @ (wide.T @ probe)
    square = float((probe * image).sum() / (probe * probe).sum())
    if not square > 0:
        return None
    miss = float((image - square * probe).norm() / (square * probe.norm()))
    return math.sqrt(square) if miss <= tolerance else None


def equal_rows(values: Tensor, groups: int = 1) -> bool:
    """Whether all output units of some group of two or more are equal and not zero: they will stay so in training."""
    rows = values.flatten(1)
    size = len(rows) // groups
    if size < 2 or not torch.equal(rows[0], rows[1]):
        return False
    grouped = rows.reshape(groups, size, -1)
    return bool((grouped == grouped[:, :1]).all()) and bool((rows != 0).any())
