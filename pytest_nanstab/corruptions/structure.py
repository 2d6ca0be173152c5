"""Corruptions of what a sample consists of: no row, one row, a sequence of length 0."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from pytest_nanstab.batches import trees
from pytest_nanstab.corruptions import rows as row_sets
from pytest_nanstab.corruptions.images import is_image
from pytest_nanstab.corruptions.model import Recipe

_COUNTS = r"len|length|lengths|lens|n|num|count|counts|size|sizes|frames|steps|tokens|items"
LENGTHS = re.compile(rf"(^|_)({_COUNTS})($|_)", re.IGNORECASE)
EMPTY = "sequence of length 0"
_MASK = re.compile(r"mask$", re.IGNORECASE)


def of_rows(sample: Any) -> Iterator[Recipe]:
    """An empty batch and a batch of one row, where all parts of the sample share their rows."""
    rows = row_sets.count_rows(sample)
    if rows is None or rows < 2 or _is_one_value(sample) or _holds_sparse_tensor(sample):
        return
    middle = rows // 2
    yield Recipe("empty batch", "all rows gone", False, lambda: taken(sample, []), (), "rows")
    yield Recipe("single row", f"row {middle} alone", False, lambda: taken(sample, [middle]), (), "rows")


def taken(sample: Any, rows: Sequence[int]) -> Any:
    """These rows of a sample, copied; a tuple of rows stays a tuple."""
    made = row_sets.take(sample, rows)
    return made.clone() if isinstance(made, torch.Tensor) else made


def _holds_sparse_tensor(sample: Any) -> bool:
    """Whether rows cannot be taken from some part by their indices."""
    leaves = (leaf for _, leaf in trees.leaves(sample, node=trees.is_node))
    return any(isinstance(leaf, torch.Tensor) and leaf.layout is not torch.strided for leaf in leaves)


def _is_one_value(sample: Any) -> bool:
    """An image's first dimension is its channels or its height, no rows."""
    return is_image(sample) and len(sample.shape) == 3


# --- lengths


def of_ragged(items: list[Any]) -> Iterator[Recipe]:
    """One empty sequence in a list of sequences; those of one common length are rows of a table."""
    sizes = {_size(item) for item in items}
    if len(items) < 2 or None in sizes or len(sizes) < 2:
        return
    middle = len(items) // 2

    def make() -> Any:
        return [item[:0] if number == middle else item for number, item in enumerate(taken(items, range(len(items))))]

    yield Recipe(EMPTY, f"row {middle}", False, make, (middle,), "length")


def _size(item: Any) -> int | None:
    if isinstance(item, (list, np.ndarray, torch.Tensor)) and getattr(item, "ndim", 1) > 0:
        return len(item)
    return None


def of_field(path: trees.Path, leaf: Any) -> Iterator[Recipe]:
    """A length of 0 in a field of lengths, and a row of a mask in which nothing, or nothing else, is left."""
    name = str(path[-1]) if path else ""
    if not path or not isinstance(leaf, (np.ndarray, torch.Tensor)) or leaf.ndim == 0 or len(leaf) == 0:
        return
    if isinstance(leaf, torch.Tensor) and leaf.layout is not torch.strided:
        return
    row = len(leaf) // 2
    if LENGTHS.search(name) and leaf.ndim == 1 and _is_whole(leaf) and bool((leaf > 0).all()):
        place = f"element [{row}]"
        yield Recipe(EMPTY, place, False, lambda: _with(leaf, row, 0), (row,), "length")
    elif leaf.dtype in (torch.bool, np.bool_) or (_MASK.search(name) and _is_binary(leaf)):
        # Whether a 1 says "valid" or "padding" differs from library to library.
        whole = leaf.ndim == 1
        rows = tuple(range(len(leaf))) if whole else (row,)
        for word, value in (("False", 0), ("True", 1)):
            make = partial(_with, leaf, ... if whole else row, value)
            yield Recipe(f"mask all {word}", "everywhere" if whole else f"row {row}", False, make, rows, "length")


def _with(leaf: Any, where: Any, value: int) -> Any:
    changed = leaf.clone() if isinstance(leaf, torch.Tensor) else leaf.copy()
    changed[where] = value
    return changed


def _is_whole(leaf: Any) -> bool:
    if isinstance(leaf, torch.Tensor):
        return not leaf.is_floating_point() and not leaf.is_complex() and leaf.dtype is not torch.bool
    return leaf.dtype.kind in "iu"


def _is_binary(leaf: Any) -> bool:
    if leaf.dtype in (torch.bool, np.bool_):
        return True
    return bool(((leaf == 0) | (leaf == 1)).all())
