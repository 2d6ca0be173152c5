"""Where in an array a bad value can sit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Box = tuple[slice, ...]  # a range in every dimension
MOST_COLUMNS = 16  # of a wider array the first, the middle and the last column stand for all


@dataclass(frozen=True)
class Place:
    """A box in an array: a mask would cost as much as a copy.

    Attributes:
        words: "element [4, 7]", "row 4", "column 7", "everywhere", "" for the whole of a number.
        index: what selects it.
        rows: the indices along the first dimension that it covers; none where there is no dimension.
    """

    words: str
    index: Box

    @property
    def rows(self) -> range:
        """The indices along the first dimension that it covers; none where there is no dimension."""
        return range(self.index[0].start, self.index[0].stop) if self.index else range(0)


def places(shape: tuple[int, ...]) -> list[Place]:
    """The places of an array of `shape`, none twice, the smallest first.

    Single values come first (the middle, the first, the last), then one in every column, a row, each column, the whole.
    """
    found: dict[tuple[tuple[int, int], ...], Place] = {}
    for place in _candidates(shape) if math.prod(shape) else ():
        found.setdefault(tuple((part.start, part.stop) for part in place.index), place)
    return list(found.values())


def few(found: list[Place]) -> list[Place]:
    """One value and one column: where a finite magnitude sits matters less than where a NaN sits."""
    columns = [place for place in found if place.words.startswith("column")]
    return [*found[:1], *columns[len(columns) // 2 : len(columns) // 2 + 1]]


def columns_of(shape: tuple[int, ...]) -> list[int]:
    """The columns (last dimension) of a table that are gone through; none where there are no columns."""
    if len(shape) != 2:
        return []
    count = shape[1]
    return list(range(count)) if count <= MOST_COLUMNS else [0, count // 2, count - 1]


def element(shape: tuple[int, ...], index: tuple[int, ...]) -> Place:
    """One value."""
    return Place(f"element {list(index)}" if shape else "", tuple(slice(at, at + 1) for at in index))


def row(shape: tuple[int, ...], at: int) -> Place:
    """All values with one index in the first dimension."""
    return Place(f"row {at}", (slice(at, at + 1), *everywhere(shape).index[1:]))


def column(shape: tuple[int, ...], at: int) -> Place:
    """All values with one index in the last dimension."""
    return Place(f"column {at}", (*everywhere(shape).index[:-1], slice(at, at + 1)))


def everywhere(shape: tuple[int, ...]) -> Place:
    """All values."""
    return Place("everywhere" if shape else "", tuple(slice(0, size) for size in shape))


def _candidates(shape: tuple[int, ...]) -> Iterator[Place]:
    size = math.prod(shape)
    for flat in (size // 2, 0, size - 1) if shape else ():
        yield element(shape, tuple(int(i) for i in np.unravel_index(flat, shape)))
    for at in columns_of(shape):
        yield element(shape, (shape[0] // 2, at))
    if len(shape) >= 2:
        yield row(shape, shape[0] // 2)
        for at in columns_of(shape) or [shape[-1] // 2]:
            yield column(shape, at)
    yield everywhere(shape)
