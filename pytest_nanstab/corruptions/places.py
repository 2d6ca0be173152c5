"""Where in an array a bad value can sit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Place = tuple[str, Bools]
MOST_COLUMNS = 16  # of a wider array the first, the middle and the last column stand for all


def places(shape: tuple[int, ...]) -> list[Place]:
    """The places of an array of `shape` as (words, boolean mask), none twice, the smallest first.

    Single values come first (the middle, the first, the last), then one in every column, a row, each column, the whole.
    """
    size = math.prod(shape)
    found: list[Place] = []
    seen: set[bytes] = set()
    for words, mask in _candidates(shape) if size else ():
        key = mask.tobytes()
        if key not in seen:
            seen.add(key)
            found.append((words, mask))
    return found


def few(masks: list[Place]) -> list[Place]:
    """One value and one column: where a finite magnitude sits matters less than where a NaN sits."""
    middle = [pair for pair in masks if pair[0].startswith("column")]
    return [*masks[:1], *middle[len(middle) // 2 : len(middle) // 2 + 1]]


def columns_of(shape: tuple[int, ...]) -> list[int]:
    """The columns (last dimension) of a table that are gone through; none where there are no columns."""
    if len(shape) != 2:
        return []
    count = shape[1]
    return list(range(count)) if count <= MOST_COLUMNS else [0, count // 2, count - 1]


def _candidates(shape: tuple[int, ...]) -> Iterator[Place]:
    size = math.prod(shape)
    for flat in (size // 2, 0, size - 1) if shape else ():
        index = tuple(int(i) for i in np.unravel_index(flat, shape))
        yield f"element {list(index)}", _mask(shape, index)
    for column in columns_of(shape):
        yield f"element {[shape[0] // 2, column]}", _mask(shape, (shape[0] // 2, column))
    if len(shape) >= 2:
        row, middle = shape[0] // 2, shape[-1] // 2
        yield f"row {row}", _mask(shape, (row,))
        for column in columns_of(shape) or [middle]:
            yield f"column {column}", _mask(shape, (..., column))
    yield "everywhere" if shape else "", np.ones(shape, dtype=bool)


def _mask(shape: tuple[int, ...], index: tuple[object, ...]) -> Bools:
    mask = np.zeros(shape, dtype=bool)
    mask[index] = True  # type: ignore[index]  # an ellipsis among the indices
    return mask


def rows_of(mask: Bools) -> tuple[int, ...]:
    """The indices along the first dimension in which `mask` has a True."""
    if mask.ndim == 0:
        return ()
    return tuple(int(row) for row in np.flatnonzero(mask.reshape(mask.shape[0], -1).any(axis=1)))
