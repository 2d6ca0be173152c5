"""What the columns of a field are over a whole walk: constant or nearly so, and on request their statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pytest_nanstab.checks import _numbers
from pytest_nanstab.checks._leaves import Array, Values

# Fewer float32 steps than this between smallest and largest value, and a column counts as nearly constant. Scaling
# subtracts a mean or minimum that float32 itself has only to about a step, and what is left of 255 steps fills less
# than the 8 bits of bfloat16, the coarsest numbers that networks are fed with: scaled to size 1 it is mostly rounding.
_STEPS = 256
# Statistics of more columns would tell no more about how a field was scaled.
_MOST = 256
_WAITING = 1 << 16  # values that wait to be taken in: half a MiB, which caches hold
_NATIVE = (torch.float32, torch.float64)
# Share of the mean in the sum of squares from which deviations are summed by themselves, in a second pass: up to it the
# difference of the two sums has lost 4 of its 16 digits.
_CANCELS = 1 - 1e-4
END = 1e-6  # scalers that multiply and add reach 0 and 1 only to rounding


def as_array(values: Values) -> Array:
    """The numbers as an array; half precision as float32, which holds all of it."""
    if not isinstance(values, Tensor):
        return values
    if values.is_cpu and values.dtype in _NATIVE and not (values.requires_grad or values.is_neg()):
        return values.numpy()
    plain = values.detach().cpu().resolve_neg()
    return np.asarray((plain.float() if plain.is_floating_point() and plain.element_size() < 4 else plain).numpy())


def column_extents(values: Values) -> tuple[Array, Array]:
    """Smallest and largest value of each column of float values of shape (rows, columns), NaN passed on."""
    if isinstance(values, Tensor) and (values.is_cpu and values.dtype in _NATIVE):
        values = as_array(values)  # numpy reduces over rows in half the time
    if isinstance(values, Tensor):
        low, high = torch.aminmax(_numbers.real(values), dim=0)
        return as_array(low), as_array(high)
    with np.errstate(invalid="ignore"):
        return np.minimum.reduce(values, 0), np.maximum.reduce(values, 0)


class Columns:
    """Running smallest and largest value of each column of a two-dimensional field, until no column is suspect.

    Attributes:
        settled: whether no further rows can make a column constant or nearly so. Rows that raise the magnitude raise
            the range by as much, so the range in steps can only fall where the step itself doubles: by half.
    """

    def __init__(self) -> None:
        self.settled = False
        self._low: Array | None = None
        self._high: Array | None = None

    def add(self, low: Array, high: Array) -> None:
        """Take in the extents of further rows; NaN where a column had no finite value."""
        if self._low is None or self._high is None:
            self._low, self._high = low, high
        elif self._low.shape == low.shape:
            self._low, self._high = np.fmin(self._low, low), np.fmax(self._high, high)
        else:  # a padded length, not a column
            self._low = self._high = np.empty(0)
        self.settled = not self._narrow(2 * _STEPS).any()

    def _narrow(self, steps: int) -> Array:
        """Which columns span fewer float32 steps, or have no number yet."""
        low, high = np.asarray(self._low, dtype=np.float64), np.asarray(self._high, dtype=np.float64)
        return np.asarray(~(high - low >= steps * _float32_step(low, high)))

    def constant(self) -> list[int]:
        """Columns with one value in all rows, unless all columns are: then there was one distinct row."""
        if self._low is None or self._high is None:
            return []
        same = self._low == self._high
        return [] if same.all() else [int(index) for index in np.flatnonzero(same)]

    def nearly_constant(self) -> list[tuple[int, float, float]]:
        """Other columns in which float32 has too few steps for scaling: index, smallest and largest value."""
        if self._low is None or self._high is None or self.settled:
            return []
        near = np.flatnonzero(self._narrow(_STEPS) & (self._low < self._high))
        return [(int(index), float(self._low[index]), float(self._high[index])) for index in near]

    def is_constant(self) -> bool:
        """Of a single column: whether there was one value only."""
        return self._low is not None and self._low.size > 0 and bool(np.all(self._low == self._high))


def _float32_step(low: Array, high: Array) -> Array:
    """The distance of float32 numbers at the larger magnitude."""
    # Below the largest number: the distance from it to the next is infinite.
    largest = np.minimum(np.maximum(np.abs(low), np.abs(high)), np.finfo(np.float32).max / 2)
    return np.asarray(np.spacing(largest.astype(np.float32)), dtype=np.float64)


# --- statistics


@dataclass(frozen=True)
class Moments:
    """Statistics of each column of some rows, in float64; NaN and infinities are left out.

    Attributes:
        count: how many values there are.
        mean: their mean.
        squares: the sum of their squared deviations from it.
        low: the smallest.
        high: the largest.
        at_low: how many are equal to the smallest, counted where that is about 0 or -1; else 0.
        at_high: how many are equal to the largest, counted where that is about 1; else 0.
    """

    count: Array
    mean: Array
    squares: Array
    low: Array
    high: Array
    at_low: Array
    at_high: Array

    def merged(self, other: Moments) -> Moments:
        """The statistics of both sets of rows, by the update of Chan, Golub and LeVeque (1979): nothing cancels."""
        count = self.count + other.count
        apart, share = other.mean - self.mean, other.count / np.maximum(count, 1)
        low, high = np.fmin(self.low, other.low), np.fmax(self.high, other.high)
        return Moments(
            count=count,
            mean=self.mean + apart * share,
            squares=self.squares + other.squares + apart * apart * self.count * share,
            low=low,
            high=high,
            at_low=self.at_low * (self.low == low) + other.at_low * (other.low == low),
            at_high=self.at_high * (self.high == high) + other.at_high * (other.high == high),
        )


class Statistics:
    """Running moments of a two-dimensional field: of all columns, or of 256 at most spread evenly.

    Rows are gathered, as copies, and taken in many at a time: a dozen small operations per batch would cost as much as
    a small batch itself. They wait column by column, because numpy reduces along memory many times faster than across.
    """

    def __init__(self) -> None:
        self._moments: Moments | None = None
        self._width: int | None = None
        self._usable = True
        self._filled = 0

    @property
    def whole(self) -> bool:
        """Whether no column is left out."""
        return self._width is not None and self._width <= _MOST

    def add(self, rows: Array) -> None:
        """Take in an array of shape (rows, columns)."""
        if self._width is None:
            self._begin(rows.shape[1])
        if rows.shape[1] != self._width:
            self._usable = False
        if self._usable:
            rows = rows[:, :: self._stride]
            for start in range(0, len(rows), self._room):
                self._gather(rows[start : start + self._room])

    def moments(self) -> Moments | None:
        """The statistics of all rows; None without any, and when the number of columns changed."""
        if self._filled:
            self._take_in()
        return self._moments if self._usable else None

    def _begin(self, width: int) -> None:
        self._width = width
        self._stride = max(1, -(-width // _MOST))
        kept = -(-width // self._stride)
        self._room = _WAITING // kept
        self._waiting = np.empty((kept, self._room))

    def _gather(self, rows: Array) -> None:
        if self._filled + len(rows) > self._room:
            self._take_in()
        self._waiting[:, self._filled : self._filled + len(rows)] = rows.T
        self._filled += len(rows)

    def _take_in(self) -> None:
        moments = moments_of(self._waiting[:, : self._filled])
        self._moments = moments if self._moments is None else self._moments.merged(moments)
        self._filled = 0


def moments_of(values: Array) -> Moments:
    """The statistics of float64 values of shape (columns, rows)."""
    with np.errstate(invalid="ignore"):
        low, high = np.minimum.reduce(values, 1), np.maximum.reduce(values, 1)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return _moments_with_gaps(values)
    rows = values.shape[1]
    mean = np.add.reduce(values, 1) / rows
    squares = _squares(values)
    offset = rows * mean * mean
    if np.any(offset > _CANCELS * squares):
        squares, offset = _squares(values - mean[:, None]), np.zeros(len(mean))
    return Moments(np.full(len(mean), float(rows)), mean, squares - offset, low, high, *_ends(values, low, high))


def _squares(values: Array) -> Array:
    """The sum of squares of each row."""
    return np.asarray(np.einsum("ij,ij->i", values, values))


def _ends(values: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """How often each column's ends are met, where they are ends that scaling makes."""
    none = np.zeros(len(low))
    bottom = bool(np.any((np.abs(low) <= END) | (np.abs(low + 1) <= END)))
    top = bool(np.any(np.abs(high - 1) <= END))
    return (
        np.count_nonzero(values == low[:, None], axis=1).astype(np.float64) if bottom else none,
        np.count_nonzero(values == high[:, None], axis=1).astype(np.float64) if top else none,
    )


def _moments_with_gaps(values: Array) -> Moments:
    known = np.isfinite(values)
    low, high = finite_extents(values.T)
    count = np.count_nonzero(known, axis=1).astype(np.float64)
    mean = np.where(known, values, 0.0).sum(axis=1) / np.maximum(count, 1)
    off = np.where(known, values, mean[:, None]) - mean[:, None]
    return Moments(count, mean, _squares(off), low, high, *_ends(values, low, high))


def finite_extents(rows: Array) -> tuple[Array, Array]:
    """Smallest and largest finite value of each column of (rows, columns); NaN where there is none."""
    known = np.where(np.isfinite(rows), rows, np.nan)
    return np.fmin.reduce(known, 0), np.fmax.reduce(known, 0)
