"""Finite and wrong: what NaN, an infinity or a large number becomes when it is cast to whole numbers.

C leaves a cast of a value outside the range undefined (C17 6.3.1.4); on x86 the smallest integer comes out. A whole
number that a narrower type cannot hold wraps around.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pytest_nanstab.checks import _numbers
from pytest_nanstab.checks._leaves import Leaf, numeric_leaves
from pytest_nanstab.corruptions.model import Corruption
from pytest_nanstab.corruptions.numbers import WHOLE
from pytest_nanstab.corruptions.rows import as_array
from pytest_nanstab.pipelines.outputs import Leak, place_of, texts_in

_SCALED = ("magnitude", "image", "sign")
_EXACT = 2.0**52  # float64 holds every whole number up to here
_CAST = ("nonfinite", "missing", "magnitude")


def leak(sample: Any, clean: Any, output: Any, corruption: Corruption) -> Leak | None:
    """The first whole number of the output that a cast has made of the corruption."""
    if corruption.family in _SCALED:
        found = _wrapped_after_scaling(sample, clean, output, corruption.value)
        if found is not None:
            return found
    if corruption.family in _CAST:
        return _first(
            clean, output, lambda dtype: int(np.iinfo(dtype).min) if dtype.kind == "i" else None, "a cast made"
        )
    value = dict(WHOLE).get(corruption.name) if corruption.family == "integer" else None
    if value is None:
        return None
    return _first(clean, output, lambda dtype: _wrapped(value, dtype), f"{value} became")


def _wrapped_after_scaling(sample: Any, clean: Any, output: Any, corrupted: Any) -> Leak | None:
    """Pixels that a cast has wrapped: where the clean output is the input times a scale, the others' are known."""
    before, given = _only_array(sample, "f"), _only_array(corrupted, "f")
    made_before, made = _only_array(clean, "iu"), _only_array(output, "iu")
    if before is None or given is None or made_before is None or made is None:
        return None
    if not before.shape == made_before.shape == given.shape == made.shape or np.ptp(before) == 0:
        return None
    scale, offset = np.polyfit(before.ravel().astype(np.float64), made_before.ravel().astype(np.float64), 1)
    if np.abs(scale * before + offset - made_before).max() > 1:  # another formula than a scale and rounding
        return None
    info = np.iinfo(made.dtype)
    expected = scale * given.astype(np.float64) + offset
    outside = ((expected > info.max + 1) | (expected < info.min - 1)) & (np.abs(expected) < _EXACT)
    # What is outside may have been clipped; a cast has wrapped it where the two differ by whole turns.
    turned = np.where(outside, np.rint(expected) - made, 1.0) % 2.0**info.bits
    wrapped = outside & (np.minimum(turned, 2.0**info.bits - turned) <= 1)
    if not wrapped.any():
        return None
    first = tuple(np.argwhere(wrapped)[0].tolist())
    return Leak(f"{expected[first]:.6g} became {made[first]} as {made.dtype}, row {first[0]}", made=int(made[first]))


def _only_array(value: Any, kinds: str) -> Any:
    """The one array of such numbers in a value; None with none or several."""
    arrays = [as_array(leaf.values) for leaf in numeric_leaves(value)]
    found = [array for array in arrays if array.dtype.kind in kinds and array.ndim > 0]
    return found[0] if len(found) == 1 and found[0].size else None


def _wrapped(value: int, dtype: Any) -> int | None:
    """What two's complement makes of a number that `dtype` cannot hold; None where it can."""
    info = np.iinfo(dtype)
    if value <= int(info.max):
        return None
    wrapped = int(value % 2**info.bits)
    return wrapped - int(2**info.bits) if dtype.kind == "i" and wrapped > int(info.max) else wrapped


def _first(clean: Any, output: Any, made_of: Any, words: str) -> Leak | None:
    before = {leaf.field: leaf for leaf in numeric_leaves(clean, name="output", objects=True)}
    for leaf in numeric_leaves(output, name="output", objects=True):
        values = as_array(leaf.values)
        if values.dtype.kind not in "iu" or leaf.locate is not None:
            continue
        made = made_of(values.dtype)
        bad = values == made if made is not None else np.zeros(values.shape, dtype=bool)
        bad &= ~_same_before(before.get(leaf.field), values)
        if bad.any():
            rows = _numbers.places(leaf, bad, 10)
            return Leak(f"{words} {made}{place_of(leaf, rows['rows'], rows['columns'])}", made=made)
    return None


def _same_before(leaf: Leaf | None, values: Any) -> Any:
    """Where the clean output has the same number."""
    before = None if leaf is None else as_array(leaf.values)
    return before == values if before is not None and before.shape == values.shape else np.zeros(values.shape, bool)


def rounding(output: Any, corruption: Corruption) -> str | None:
    """That a whole number came out as the float next to it: legal, and no longer the same number."""
    value = dict(WHOLE).get(corruption.name)
    if value is None or corruption.family != "integer":
        return None
    for leaf in numeric_leaves(output, name="output", objects=True):
        values = as_array(leaf.values)
        nearest = values.dtype.type(value) if values.dtype.kind == "f" else None
        if nearest is not None and np.isfinite(nearest) and int(nearest) != value and (values == nearest).any():
            return f"finite, rounded to {int(nearest)}"
    return None


def holds_text(clean: Any, output: Any, corruption: Corruption) -> bool:
    """Whether the text that stood among numbers is in the output as it was, where there is no other text."""
    if any(isinstance(item, str) for _, item in texts_in(clean)):
        return False
    return any(corruption.name == f"text {item!r}" for _, item in texts_in(output))
