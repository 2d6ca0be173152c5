"""Corrupted copies of a sample: what a data pipeline has to refuse or repair.

`all_corruptions` is a plain, deterministic list; `pytest_nanstab.strategies.corruptions` draws from it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pytest_nanstab.batches import corruption_frames as frames
from pytest_nanstab.batches import trees

Bools = npt.NDArray[np.bool_]
NONFINITE = (("NaN", math.nan), ("+Inf", math.inf), ("-Inf", -math.inf))
TEXTS = (("lone surrogate", "\ud800", True), ("NUL character", "\x00", False), ("byte order mark", "\ufeff", False))
_MOST_RECORDS = 3  # of a long list of records only the first, the middle and the last are corrupted


@dataclass(frozen=True)
class Corruption:
    """One corrupted copy of a sample.

    Attributes:
        name: what was put in: "NaN", "+Inf", "-Inf", "1e39 (beyond float32)", "None", "NaT", "lone surrogate", ...
        place: where, in words: 'column 3', 'element [4, 7] of "image"'; "" when the whole sample is one value.
        invalid: True for what is no value at all (NaN, Inf, missing, text that no encoder accepts): it must be refused
            or repaired. False for a legal but extreme value: it must be refused or lead to finite output.
        value: the corrupted sample; the original is never touched and shares no memory with it.
        rows: 0-based indices along the first dimension that hold the corruption; () where there are no rows.
    """

    name: str
    place: str
    invalid: bool
    value: Any
    rows: tuple[int, ...] = ()


def all_corruptions(sample: Any) -> list[Corruption]:
    """Every corruption that fits `sample`: arrays, tensors, data frames, series, texts, numbers and nested containers.

    Integers and booleans cannot hold NaN, so they are left alone; a sample of nothing else gives an empty list.
    """
    return list(iter_corruptions(sample))


def iter_corruptions(sample: Any) -> Iterator[Corruption]:
    """`all_corruptions` one at a time, for samples too large to hold dozens of copies."""
    for path, leaf in _targets(sample):
        for made in _of_leaf(leaf):
            value = _replaced(sample, path, made.value)
            yield Corruption(made.name, _place(made.place, path), made.invalid, value, _rows(sample, path, made.rows))


def _targets(node: Any, path: trees.Path = ()) -> Iterator[tuple[trees.Path, Any]]:
    if not trees.is_container(node) or _is_text_list(node) or _is_number_list(node):
        yield path, node
        return
    pairs = trees.children(node)
    if isinstance(node, list) and len(pairs) > _MOST_RECORDS:
        pairs = [pairs[0], pairs[len(pairs) // 2], pairs[-1]]
    for key, child in pairs:
        yield from _targets(child, (*path, key))


def _of_leaf(leaf: Any) -> Iterator[Corruption]:
    for cls, corrupted in _BY_CLASS:
        if isinstance(leaf, cls):
            return corrupted(leaf)
    if frames.is_frame(leaf) or frames.is_series(leaf):
        return (Corruption(*made) for made in frames.corrupted(leaf))
    return iter(())


# --- arrays and tensors


def _of_array(array: npt.NDArray[Any]) -> Iterator[Corruption]:
    masks = places(array.shape)
    if array.dtype.kind in "fc":
        yield from _numeric(
            masks, _magnitudes(np.finfo(array.dtype)), lambda mask, value: _array_with(array, mask, value)
        )
    elif array.dtype.kind in "mM":
        for place, mask in masks:
            missing = np.array("NaT", dtype=array.dtype)
            yield Corruption("NaT", place, True, _array_with(array, mask, missing), rows_of(mask))
    elif array.dtype.kind == "O":
        for place, mask in masks:
            if any(item is not None for item in array[mask]):
                yield Corruption("None", place, True, _array_with(array, mask, None), rows_of(mask))
        yield from _of_text_array(array, masks)
    elif array.dtype.kind in "UT":
        yield from _of_text_array(array.astype(object), masks, dtype=array.dtype)


def _array_with(array: npt.NDArray[Any], mask: Bools, value: Any) -> npt.NDArray[Any]:
    changed = copy.deepcopy(array)
    changed[mask] = value
    return changed


def _of_text_array(
    array: npt.NDArray[Any], masks: list[tuple[str, Bools]], dtype: np.dtype[Any] | None = None
) -> Iterator[Corruption]:
    for place, mask in masks:
        if not all(isinstance(item, str) for item in array[mask]):
            continue
        for name, text, invalid in TEXTS:
            changed = copy.deepcopy(array)
            changed[mask] = np.array([with_text(item, text) for item in array[mask]], dtype=object)
            # The fixed width of a numpy text array would cut the longer text off again.
            value = changed if dtype is None else changed.astype(str if dtype.kind == "U" else dtype)
            yield Corruption(name, place, invalid, value, rows_of(mask))


def _of_tensor(tensor: torch.Tensor) -> Iterator[Corruption]:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout is not torch.strided:
        return

    def with_value(mask: Bools, value: float) -> torch.Tensor:
        changed = tensor.detach().clone()
        changed[torch.from_numpy(mask).to(tensor.device)] = value
        return changed.requires_grad_(tensor.requires_grad)

    yield from _numeric(places(tuple(tensor.shape)), _magnitudes(torch.finfo(tensor.dtype)), with_value)


def _numeric(
    masks: list[tuple[str, Bools]], magnitudes: list[tuple[str, float]], with_value: Callable[[Bools, float], Any]
) -> Iterator[Corruption]:
    for place, mask in masks:
        for name, value in NONFINITE:
            yield Corruption(name, place, True, with_value(mask, value), rows_of(mask))
    for name, value in magnitudes:
        for place, mask in _few(masks):
            yield Corruption(name, place, False, with_value(mask, value), rows_of(mask))


def _few(masks: list[tuple[str, Bools]]) -> list[tuple[str, Bools]]:
    """One value and one column: where a finite magnitude sits matters less than where a NaN sits."""
    return [pair for index, pair in enumerate(masks) if index == 0 or pair[0].startswith("column")]


def _magnitudes(info: Any) -> list[tuple[str, float]]:
    values = (
        ("1e5 (beyond float16)", 1e5),
        ("3e38 (its square is beyond float32)", 3e38),
        ("1e39 (beyond float32)", 1e39),
    )
    return [(name, value) for name, value in values if value <= float(info.max)]


def places(shape: tuple[int, ...]) -> list[tuple[str, Bools]]:
    """The places of a tensor of `shape` as (words, boolean mask), none twice: values, a row, a column, everywhere."""
    size = math.prod(shape)
    found: list[tuple[str, Bools]] = []
    for words, mask in _candidates(shape) if size else ():
        if not any(np.array_equal(mask, other) for _, other in found):
            found.append((words, mask))
    return found


def _candidates(shape: tuple[int, ...]) -> Iterator[tuple[str, Bools]]:
    size = math.prod(shape)
    for flat in (size // 2, 0, size - 1) if shape else ():
        index = tuple(int(i) for i in np.unravel_index(flat, shape))
        yield f"element {list(index)}", _mask(shape, index)
    if len(shape) >= 2:
        row, column = shape[0] // 2, shape[-1] // 2
        yield f"row {row}", _mask(shape, (row,))
        yield f"column {column}", _mask(shape, (..., column))
    yield "everywhere" if shape else "", np.ones(shape, dtype=bool)


def _mask(shape: tuple[int, ...], index: tuple[Any, ...]) -> Bools:
    mask = np.zeros(shape, dtype=bool)
    mask[index] = True
    return mask


def rows_of(mask: Bools) -> tuple[int, ...]:
    """The indices along the first dimension in which `mask` has a True."""
    if mask.ndim == 0:
        return ()
    return tuple(int(row) for row in np.flatnonzero(mask.reshape(mask.shape[0], -1).any(axis=1)))


# --- texts and Python numbers


def with_text(original: str, text: str) -> str:
    """`original` with `text` inside; a byte order mark goes to the front, where files have it."""
    middle = 0 if text == "\ufeff" else len(original) // 2
    return original[:middle] + text + original[middle:]


def _of_text(leaf: str) -> Iterator[Corruption]:
    for name, text, invalid in TEXTS:
        yield Corruption(name, "", invalid, with_text(leaf, text))


def _of_texts(leaf: list[str]) -> Iterator[Corruption]:
    for place, mask in places((len(leaf),)):
        rows = rows_of(mask)
        missing = [None if mask[row] else item for row, item in enumerate(leaf)]
        yield Corruption("None", place, True, missing, rows)
        for name, text, invalid in TEXTS:
            changed = [with_text(item, text) if mask[row] else item for row, item in enumerate(leaf)]
            yield Corruption(name, place, invalid, changed, rows)


def _of_numbers(leaf: list[Any]) -> Iterator[Corruption]:
    for made in _of_array(np.array(leaf, dtype=np.float64)):
        yield Corruption(made.name, made.place, made.invalid, made.value.tolist(), made.rows)


def _of_number(_leaf: float) -> Iterator[Corruption]:
    for name, value in (*NONFINITE, *_magnitudes(np.finfo(np.float64))):
        yield Corruption(name, "", not math.isfinite(value), value)


def _of_list(leaf: list[Any]) -> Iterator[Corruption]:
    if not leaf:
        return iter(())
    return _of_texts(leaf) if _is_text_list(leaf) else _of_numbers(leaf)


_BY_CLASS: tuple[tuple[type, Callable[[Any], Iterator[Corruption]]], ...] = (
    (torch.Tensor, _of_tensor),
    (np.ndarray, _of_array),
    (str, _of_text),
    (list, _of_list),
    (float, _of_number),
)


def _is_text_list(node: Any) -> bool:
    return isinstance(node, list) and bool(node) and all(isinstance(item, str) for item in node)


def _is_number_list(node: Any) -> bool:
    """A list of floats, or rows of equal length with a float among them; tuples are records, not rows."""
    if not isinstance(node, list) or not node:
        return False
    if all(isinstance(item, list) for item in node):
        return len({len(item) for item in node}) == 1 and any(map(_is_number_list, node)) and all(map(_numbers, node))
    return _numbers(node) and any(isinstance(item, float) for item in node)


def _numbers(items: list[Any]) -> bool:
    return all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items) or all(
        isinstance(item, list) and _numbers(item) for item in items
    )


# --- back into the sample


def _replaced(sample: Any, path: trees.Path, leaf: Any) -> Any:
    if not path:
        return leaf
    return trees.rebuilt(
        sample,
        [_replaced(child, path[1:], leaf) if key == path[0] else fresh(child) for key, child in trees.children(sample)],
    )


def fresh(tree: Any) -> Any:
    """A copy of a sample that shares no memory with it."""
    return trees.mapped(lambda _path, leaf: _copied_leaf(leaf), tree)


def _copied_leaf(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):  # deepcopy refuses tensors with history
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return copy.deepcopy(leaf)


def _place(words: str, path: trees.Path) -> str:
    if not path:
        return words
    field = f'"{trees.dotted(path)}"'
    return f"{words} of {field}" if words else field


def _rows(sample: Any, path: trees.Path, rows: tuple[int, ...]) -> tuple[int, ...]:
    """In a list of records the record is the row."""
    return (path[0],) if path and isinstance(sample, list) else rows
