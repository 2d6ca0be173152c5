"""Corruptions of numbers in arrays and tensors of any shape."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pytest_nanstab.corruptions.model import Recipe
from pytest_nanstab.corruptions.places import Bools, Place, columns_of, few, places, rows_of

Array = npt.NDArray[Any]
Put = Callable[[Bools, Any], Any]  # (where, value or values) -> the corrupted copy
NONFINITE = (("NaN", math.nan), ("+Inf", math.inf), ("-Inf", -math.inf))
MAGNITUDES = (
    ("1e5 (beyond float16)", 1e5),
    ("3e38 (its square is beyond float32)", 3e38),
    ("1e39 (beyond float32)", 1e39),
)
WHOLE = (
    ("2**24 + 1 (no float32)", 2**24 + 1),
    ("2**31 (beyond int32)", 2**31),
    ("2**63 - 1 (the largest int64)", 2**63 - 1),
)
OUTLIER = 1e6  # times the largest magnitude of its column
_SMALL_CODES = 1000  # whole numbers below it may be labels, indices or lengths, which a huge one would turn into memory


def of_array(array: Array) -> Iterator[Recipe]:
    """Corruptions of a numpy array of numbers or times; nothing for the other kinds."""

    def put(mask: Bools, value: Any) -> Array:
        changed = copy.deepcopy(array)
        changed[mask] = value
        return changed

    kind = array.dtype.kind
    if kind == "f":
        yield from floats(_plain(array), float(np.finfo(array.dtype).max), put)
    elif kind == "c":
        yield from nonfinite(places(array.shape), put)
    elif kind in "iu":
        yield from integers(array, int(np.iinfo(array.dtype).max), put, codes=array.ndim < 2)
    elif kind in "mM":
        for place in places(array.shape):
            yield _recipe("NaT", place, put, np.array("NaT", dtype=array.dtype), "missing")


def of_tensor(tensor: torch.Tensor) -> Iterator[Recipe]:
    """Corruptions of a dense tensor of numbers."""
    if tensor.layout is not torch.strided or tensor.dtype is torch.bool or tensor.device.type == "meta":
        return

    def put(mask: Bools, value: Any) -> torch.Tensor:
        changed = tensor.detach().clone()
        where = torch.from_numpy(mask).to(tensor.device)
        changed[where] = torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device)
        return changed.requires_grad_(tensor.requires_grad)

    if tensor.is_complex():
        yield from nonfinite(places(tuple(tensor.shape)), put)
    elif tensor.is_floating_point():
        values = tensor.detach().cpu().double().numpy()
        yield from floats(values, torch.finfo(tensor.dtype).max, put)
    else:
        values = tensor.detach().cpu().numpy()
        yield from integers(values, torch.iinfo(tensor.dtype).max, put, codes=True)


def of_list(numbers: list[Any]) -> Iterator[Recipe]:
    """Corruptions of a list of floats, or of rows of them."""
    array = np.array(numbers, dtype=np.float64)
    for recipe in of_array(array):
        yield recipe.within(lambda made: made.tolist(), recipe.place, recipe.rows)


def of_number(_number: float) -> Iterator[Recipe]:
    """What can stand for a single number."""
    for name, value in (*NONFINITE, *MAGNITUDES):
        finite = math.isfinite(value)
        yield Recipe(name, "", not finite, partial(float, value), (), "magnitude" if finite else "nonfinite")


def _plain(array: Array) -> Array:
    return np.asarray(array, dtype=np.float64)


# --- floats


def floats(values: Array, limit: float, put: Put) -> Iterator[Recipe]:
    """Everything floating numbers can suffer: `values` are the good ones in float64, `limit` the dtype's largest."""
    masks = places(values.shape)
    yield from nonfinite(masks, put)
    yield from _almost_all_missing(values.shape, put)
    for name, value in MAGNITUDES:
        if value <= limit:
            yield from (_legal(name, (place, mask), put, value, "magnitude") for place, mask in few(masks))
    for place, mask, column in _columns(values):
        yield from _of_column(place, mask, column, limit, put)
    if values.ndim == 2 and values.size and values.shape[1] > 1 and float(values.min()) >= 0:
        row = np.zeros(values.shape, dtype=bool)
        row[values.shape[0] // 2] = True
        yield _legal("zero", (f"row {values.shape[0] // 2}", row), put, 0.0, "sign")


def nonfinite(masks: list[Place], put: Put) -> Iterator[Recipe]:
    """NaN at every place; the infinities in single values, one row, one column and everywhere."""
    whole = [place for place, _ in masks if place.startswith("column")]
    middle = whole[len(whole) // 2] if whole else ""
    for place, mask in masks:
        for name, value in NONFINITE:
            if name == "NaN" or place not in whole or place == middle:
                yield _recipe(name, (place, mask), put, value)


def _almost_all_missing(shape: tuple[int, ...], put: Put) -> Iterator[Recipe]:
    if len(shape) > 2 or not shape or shape[0] < 3:
        return
    columns: list[int] | list[None] = columns_of(shape) or [None]
    for column in columns:
        mask = np.ones(shape, dtype=bool) if column is None else _column_mask(shape, column)
        mask[-1] = False
        place = "all rows but the last" if column is None else f"column {column}"
        yield _recipe("NaN in all but one", (place, mask), put, math.nan)


def _columns(values: Array) -> Iterator[tuple[str, Bools, Array]]:
    """(place, mask, values) of what belongs together: each column of a table, anything else as a whole."""
    for column in columns_of(values.shape):
        yield f"column {column}", _column_mask(values.shape, column), values[:, column]
    if values.ndim != 2 and values.size:
        yield "everywhere" if values.ndim else "", np.ones(values.shape, dtype=bool), values.ravel()


def _column_mask(shape: tuple[int, ...], column: int) -> Bools:
    mask = np.zeros(shape, dtype=bool)
    mask[:, column] = True
    return mask


def _of_column(place: str, mask: Bools, column: Array, limit: float, put: Put) -> Iterator[Recipe]:
    known = column[np.isfinite(column)]
    if not known.size:
        return
    spot, one = _one_of(mask)
    outlier = OUTLIER * (float(np.abs(known).max()) or 1.0)
    if outlier <= limit:
        yield _legal("outlier (1e6 times the largest)", (spot, one), put, outlier, "magnitude")
    if column.size > 1 and known.min() != known.max():
        yield _legal("constant", (place, mask), put, float(known[0]), "constant")
    yield from signs(known, lambda name, value: _legal(name, (spot, one), put, value, "sign"))


def signs(known: Array, recipe: Callable[[str, float], Recipe]) -> Iterator[Recipe]:
    """Zero where all was positive, and a negative value where nothing was; 0 and 1 are answers, not amounts."""
    low = float(known.min())
    if low > 0:
        yield recipe("zero", 0.0)
    if low >= 0 and not np.isin(known, (0.0, 1.0)).all():
        yield recipe("negative", -float(np.median(known)) or -float(known.max()))


def _one_of(mask: Bools) -> Place:
    """The middle one of the values that a mask covers."""
    where = np.argwhere(mask)
    index = tuple(int(i) for i in where[len(where) // 2])
    one = np.zeros(mask.shape, dtype=bool)
    one[index] = True
    return (f"element {list(index)}" if index else ""), one


# --- whole numbers


def integers(values: Array, limit: int, put: Put, *, codes: bool) -> Iterator[Recipe]:
    """Whole numbers that narrower types cannot hold; `codes`: small ones may be labels or lengths, and are left alone.

    A float32 holds whole numbers up to 2**24, IEEE 754's 24 bits of significand.
    """
    if not values.size or (codes and int(np.abs(values).max()) < _SMALL_CODES):
        return
    middle = few(places(values.shape))[:1]
    for name, value in WHOLE:
        if value <= limit:
            yield from (_legal(name, (place, mask), put, value, "integer") for place, mask in middle)


# --- recipes


def _recipe(name: str, place: Place, put: Put, value: Any, family: Any = "nonfinite") -> Recipe:
    words, mask = place
    return Recipe(name, words, True, partial(put, mask, value), rows_of(mask), family)


def _legal(name: str, place: Place, put: Put, value: Any, family: Any) -> Recipe:
    words, mask = place
    return Recipe(name, words, False, partial(put, mask, value), rows_of(mask), family)
