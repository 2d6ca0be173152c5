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
from pytest_nanstab.corruptions.places import Box, Place, column, columns_of, element, everywhere, few, places, row

Array = npt.NDArray[Any]
Put = Callable[[Box, Any], Any]  # (where, value) -> the corrupted copy
NONFINITE = (("NaN", math.nan), ("+Inf", math.inf), ("-Inf", -math.inf))
MAGNITUDES = (
    ("1e5 (beyond float16)", 1e5),
    ("3e38 (its square is beyond float32)", 3e38),
    ("1e39 (beyond float32)", 1e39),
)
WHOLE = (
    ("2**24 + 1 (no float32)", 2**24 + 1),
    ("2**40 + 1 (beyond int32)", 2**40 + 1),
    ("2**63 - 1 (the largest int64)", 2**63 - 1),
)
OUTLIER = 1e6  # times the largest magnitude of its column
_SMALL_CODES = 1000  # whole numbers below it may be labels or indices: what is made of them grows with the largest


def of_array(array: Array) -> Iterator[Recipe]:
    """Corruptions of a numpy array of numbers or times; nothing for the other kinds."""

    def put(where: Box, value: Any) -> Array:
        changed = copy.deepcopy(array)
        changed[where] = value
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

    def put(where: Box, value: Any) -> torch.Tensor:
        changed = tensor.detach().clone()
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
    shape = values.shape
    found = places(shape)
    yield from nonfinite(found, put)
    yield from _almost_all_missing(shape, put)
    for name, value in MAGNITUDES:
        if value <= limit:
            yield from (_legal(name, place, put, value, "magnitude") for place in few(found))
    if len(shape) == 2:
        for at in columns_of(shape):
            yield from _of_column(column(shape, at), element(shape, (shape[0] // 2, at)), values, limit, put)
    elif values.size:
        yield from _of_column(everywhere(shape), found[0], values, limit, put)
    if len(shape) > 1 and values.size and math.prod(shape[1:]) > 1:
        # An empty record, silence, or one value all along: whatever is divided by the scale of a row.
        yield from _flat(row(shape, shape[0] // 2), values, put)
        if len(shape) == 2 and (values != values[:1]).any():
            yield _legal("constant", everywhere(shape), put, values[:1], "constant")  # all rows are the first one
    elif values.size > 1 and values.any():
        yield _legal("zero", everywhere(shape), put, 0.0, "sign")


def _flat(place: Place, values: Array, put: Put) -> Iterator[Recipe]:
    """All zero, and all the same, where it is not so already."""
    there = values[place.index]
    if there.any():
        yield _legal("zero", place, put, 0.0, "sign")
    if there.min() != there.max():
        yield _legal("constant", place, put, float(there.flat[0]), "constant")


def nonfinite(found: list[Place], put: Put) -> Iterator[Recipe]:
    """NaN at every place; the infinities in single values, one row, one column and everywhere."""
    columns = [place for place in found if place.words.startswith("column")]
    others = columns[: len(columns) // 2] + columns[len(columns) // 2 + 1 :]
    for place in found:
        for name, value in NONFINITE:
            if name == "NaN" or place not in others:
                yield _recipe(name, place, put, value)


def _almost_all_missing(shape: tuple[int, ...], put: Put) -> Iterator[Recipe]:
    if len(shape) not in (1, 2) or shape[0] < 3:
        return
    for whole in [column(shape, at) for at in columns_of(shape)] or [
        Place("all rows but the last", (slice(0, shape[0]),))
    ]:
        but_one = Place(whole.words, (slice(0, shape[0] - 1), *whole.index[1:]))
        yield _recipe("NaN in all but one", but_one, put, math.nan)


def _of_column(whole: Place, one: Place, values: Array, limit: float, put: Put) -> Iterator[Recipe]:
    """What a column, or an array that is no table, can suffer as a whole, or in one of its values."""
    numbers = values[whole.index]
    known = numbers[np.isfinite(numbers)]
    if not known.size:
        return
    outlier = OUTLIER * (float(np.abs(known).max()) or 1.0)
    if outlier <= limit:
        yield _legal("outlier (1e6 times the largest)", one, put, outlier, "magnitude")
    if known.size > 1 and known.min() != known.max():
        yield _legal("constant", whole, put, float(known.flat[0]), "constant")
    yield from signs(known, lambda name, value: _legal(name, one, put, value, "sign"))


def signs(known: Array, recipe: Callable[[str, float], Recipe]) -> Iterator[Recipe]:
    """Zero where all was positive, and a negative value where nothing was; 0 and 1 are answers, not amounts."""
    low = float(known.min())
    if low > 0:
        yield recipe("zero", 0.0)
    if low >= 0 and not np.isin(known, (0.0, 1.0)).all():
        yield recipe("negative", -float(np.median(known)) or -float(known.max()))


# --- whole numbers


def integers(values: Array, limit: int, put: Put, *, codes: bool) -> Iterator[Recipe]:
    """Whole numbers that narrower types cannot hold, and amounts that are zero, negative or constant.

    A float32 holds whole numbers up to 2**24, IEEE 754's 24 bits of significand. With `codes`, small numbers may be
    labels: of a number so large that nothing can be allocated for it, they suffer a cast only.
    """
    if not values.size or np.isin(values, (0, 1)).all():
        return
    middle = places(values.shape)[0]
    if codes and int(np.abs(values).max()) < _SMALL_CODES:
        name, value = WHOLE[1]
        if value <= limit:
            yield _legal(name, middle, put, value, "integer")
        return
    for name, value in WHOLE:
        if value <= limit:
            yield _legal(name, middle, put, value, "integer")
    for at in columns_of(values.shape):
        one = element(values.shape, (values.shape[0] // 2, at))
        yield from _of_whole_column(column(values.shape, at), one, values, put)


def _of_whole_column(whole: Place, one: Place, values: Array, put: Put) -> Iterator[Recipe]:
    known = values[whole.index].astype(np.float64)
    if known.min() != known.max():
        yield _legal("constant", whole, put, int(known.flat[0]), "constant")
    for recipe in signs(known, lambda name, value: _legal(name, one, put, round(value), "sign")):
        if recipe.name == "zero" or values.dtype.kind == "i":
            yield recipe


# --- recipes


def _recipe(name: str, place: Place, put: Put, value: Any, family: Any = "nonfinite") -> Recipe:
    return Recipe(name, place.words, True, partial(put, place.index, value), place.rows, family)


def _legal(name: str, place: Place, put: Put, value: Any, family: Any) -> Recipe:
    return Recipe(name, place.words, False, partial(put, place.index, value), place.rows, family)
