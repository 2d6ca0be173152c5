"""The small description of a batch that is drawn and shrunk; the tensors are built from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FULL = math.inf
# How far from the plain value a batch reaches, simple to strange. Every power of two up to 2**10 lets shrinking end
# near the value that matters; the rest are where float16, exact float32 integers, squares and float32 give way.
LEVELS = (*(2.0**k for k in range(11)), 2.0**13, 2.0**16, 2.0**20, 2.0**32, 2.0**64, 2.0**100, *(FULL,) * 9)
# Which part of the values is kept while the rest is plain: so shrinking gets from noise to a single bad element.
REGIONS = ("largest", "smallest", "row", "column", *("all",) * 20)


@dataclass(frozen=True)
class Recipe:
    """How to build one field.

    Attributes:
        kind: name of a builder, see `kinds_of`.
        seed: of the noise.
        level: reach from the plain value (the legal one nearest zero); FULL is the whole range.
        region: the part that is kept, see REGIONS.
        edits: (position, value) of single elements, positions counted flat and modulo the number of elements.
    """

    kind: str
    seed: int = 0
    level: float = FULL
    region: str = "all"
    edits: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Description:
    """How to build a whole batch: the size behind each name and one recipe per field.

    With `alike`, fields that could hold the same values do: an anchor and its positive, a prediction and its target.
    """

    sizes: Mapping[str, int]
    recipes: tuple[Recipe, ...]
    alike: bool = False


@dataclass(frozen=True, repr=False)
class Described:
    """A batch and the words for it."""

    batch: Any
    words: str
    description: Description | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"Described({self.words})"


class Made(NamedTuple):
    """What a builder hands back: values (floats, int64 or bool, not yet in the field's dtype) and words for them."""

    array: Array
    words: str


def rng_of(seed: int) -> np.random.Generator:
    """A generator of our own (numpy's fastest bit generator): the global random state stays untouched."""
    return np.random.Generator(np.random.SFC64(seed))


def number(value: Any) -> str:
    """A value as a message shows it: short, but never rounded to something else."""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (complex, np.complexfloating)):
        return f"{complex(value):.6g}"
    exact = float(value)
    short = f"{exact:.6g}"
    if float(short) == exact or not math.isfinite(exact):
        return short
    # A number of float32 needs at most nine digits to be told from its neighbours.
    nine = f"{exact:.9g}"
    return nine if float(np.float32(nine)) == exact else repr(exact)


def index_of(flat: int, shape: tuple[int, ...]) -> list[int]:
    """The index of a flat position."""
    return [int(i) for i in np.unravel_index(flat, shape)] if shape else []


def kept(made: Made, region: str, plain: float) -> Made:
    """Everything outside the region becomes plain."""
    array = made.array
    if region == "all" or not array.size:
        return made
    flat = int(array.argmin() if region == "smallest" else array.argmax())
    index = index_of(flat, array.shape)
    rest = f"everything else {number(plain)}"
    result = np.full_like(array, plain)
    if region in ("largest", "smallest") or array.ndim < 2:
        result[tuple(index)] = array[tuple(index)]
        return Made(result, f"element {index} set to {number(array[tuple(index)])}, {rest}")
    axis = 0 if region == "row" else array.ndim - 1
    part = (slice(None),) * axis + (index[axis],)
    result[part] = array[part]
    return Made(result, f"{region} {index[axis]}: {made.words}; {rest}")


def edited(made: Made, edits: tuple[tuple[int, float], ...]) -> Made:
    """Single elements set by hand."""
    if not edits or not made.array.size:
        return made
    words = [made.words]
    flat = made.array.reshape(-1)  # builders hand over fresh contiguous arrays: this is a view
    for position, value in edits:
        where = position % flat.size
        flat[where] = value
        words.append(f"element {index_of(where, made.array.shape)} set to {number(value)}")
    return Made(flat.reshape(made.array.shape), "; ".join(words))
