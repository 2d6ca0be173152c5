"""Rows of a sample and of what a pipeline makes of it: taking some, and comparing them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pytest_nanstab.batches import trees
from pytest_nanstab.checks._leaves import library


def is_rows(leaf: Any) -> bool:
    """Whether a leaf is a frame, a series, or an array with a first dimension."""
    if library(leaf) in ("pandas", "polars"):
        return hasattr(leaf, "shape")
    return (isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim > 0) or hasattr(leaf, "tocsr")


def is_records(value: Any) -> bool:
    """A list of texts, numbers or records is rows by itself."""
    return isinstance(value, list)


def count_rows(value: Any) -> int | None:
    """The number of rows that all parts of a value share; None when they share none."""
    if is_records(value):
        return len(value)
    if is_rows(value):
        return int(value.shape[0])
    if not trees.is_node(value):
        return None
    counts = {count_rows(child) for _, child in trees.children(value)}
    return counts.pop() if len(counts) == 1 else None


def take(value: Any, rows: Sequence[int]) -> Any:
    """A copy of `value` with these rows, in this order."""
    index = list(rows)
    if is_records(value):
        return [copy.deepcopy(value[row]) for row in index]
    if isinstance(value, (Mapping, tuple)) or trees.is_record(value):
        return trees.rebuilt(value, [take(child, index) for _, child in trees.children(value)])
    if library(value) == "pandas":
        return value.iloc[index].copy()
    if library(value) == "polars":
        return value[index] if index else value[:0]  # an empty list selects columns
    if hasattr(value, "tocsr"):
        return value.tocsr()[index]
    return value[index]


def same_rows(left: Any, right: Any) -> bool:
    """Whether two values hold the same rows, up to the rounding of their dtype."""
    if is_rows(left) and is_rows(right):
        return _same_array(as_array(left), as_array(right))
    if trees.is_node(left) and trees.is_node(right):
        first, second = trees.children(left), trees.children(right)
        return len(first) == len(second) and all(
            a == b and same_rows(x, y) for (a, x), (b, y) in zip(first, second, strict=True)
        )
    if trees.is_node(left) or trees.is_node(right):
        return False
    return _same_array(np.asarray(left), np.asarray(right))


def as_array(leaf: Any) -> np.ndarray[Any, Any]:
    """A leaf's rows as an array; a frame's columns side by side."""
    if isinstance(leaf, Tensor):
        plain = leaf.detach().cpu()
        plain = plain.to_dense() if plain.is_sparse else plain
        return np.asarray((plain.float() if plain.is_floating_point() and plain.element_size() < 4 else plain).numpy())
    if hasattr(leaf, "toarray"):
        return np.asarray(leaf.toarray())
    return np.asarray(leaf.to_numpy() if hasattr(leaf, "to_numpy") else leaf)


def flat(leaf: Any) -> list[Any]:
    """The items of an array or a column, of an array of several dimensions too."""
    items: list[Any] = (leaf.ravel() if isinstance(leaf, np.ndarray) else leaf).tolist()
    return items


def _same_array(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    if left.shape != right.shape:
        return False
    if left.dtype.kind in "fc" and right.dtype.kind in "fc":
        scale = float(np.abs(left[np.isfinite(left)]).max(initial=0.0))
        precision = max(float(np.finfo(left.dtype).eps), float(np.finfo(right.dtype).eps))
        # Sums over rows in another order differ by rounding; what a repair does to other rows is far larger.
        return bool(np.allclose(left, right, rtol=1e3 * precision, atol=1e2 * precision * scale, equal_nan=True))
    if left.dtype.kind == "O" or right.dtype.kind == "O":
        return all(_same_item(a, b) for a, b in zip(left.ravel().tolist(), right.ravel().tolist(), strict=True))
    return bool((left == right).all())


def _same_item(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9) or (math.isnan(left) and math.isnan(right))
    return type(left).__name__ == type(right).__name__ and str(left) == str(right)
