"""What a pipeline returned: its leaves with shape and dtype, and what in it is no value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_nanstab.batches import trees
from pytest_nanstab.checks._leaves import Leaf, library, numeric_leaves
from pytest_nanstab.checks._numbers import Damage, damage_of, extent, is_float
from pytest_nanstab.corruptions.rows import flat

if TYPE_CHECKING:
    from pytest_nanstab.pipelines.permissions import Allowance


@dataclass(frozen=True)
class Form:
    """Type, shape and dtype of a leaf of the output."""

    kind: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_number(self) -> bool:
        """Whether the dtype is one of numbers."""
        return self.dtype.lower().startswith(("int", "uint", "float", "bfloat", "number"))

    def __str__(self) -> str:
        return f"{self.dtype or self.kind}{list(self.shape) if self.shape else ''}"


def forms(output: Any) -> dict[str, Form]:
    """The form of every leaf, by its dotted path; a list of plain items is one leaf."""
    return dict(_forms("", output))


def _forms(path: str, node: Any) -> Iterator[tuple[str, Form]]:
    if library(node) in ("pandas", "polars") and hasattr(node, "columns"):
        columns = list(node.columns)
        dtypes = list(node.dtypes)
        for at, (label, dtype) in enumerate(zip(columns, dtypes, strict=True)):
            yield f"{path}.{label}#{at}", Form("column", (node.shape[0],), str(dtype))
    elif trees.is_node(node) and not _is_plain_list(node):
        for key, child in trees.children(node):
            yield from _forms(f"{path}.{key}", child)
    elif hasattr(node, "shape") and hasattr(node, "dtype"):
        yield path, Form(type(node).__name__, tuple(node.shape), str(node.dtype).removeprefix("torch."))
    else:
        items = node if isinstance(node, list) else [node]
        kinds = ", ".join(sorted({_word(item) for item in items}))
        yield path, Form(type(node).__name__, (len(node),) if isinstance(node, list) else (), kinds)


def _is_plain_list(node: Any) -> bool:
    return isinstance(node, list) and not any(trees.is_node(item) or hasattr(item, "shape") for item in node)


def _word(item: Any) -> str:
    return "number" if isinstance(item, (int, float)) and not isinstance(item, bool) else type(item).__name__


@dataclass(frozen=True)
class Leak:
    """Something in the output that is no value.

    Attributes:
        words: "NaN in field x, row 3, column 2".
        leaf: where it is; None for text.
        damage: what it is; None for text.
        made: the whole number that a cast made of it.
    """

    words: str
    leaf: Leaf | None = None
    damage: Damage | None = None
    made: int | None = None


def leak(output: Any, *, allowed: Allowance | None = None, binary: bool = True) -> Leak | None:
    """The first NaN, infinity, missing value or text that no encoder accepts.

    Args:
        output: anything.
        allowed: where missing values may come out.
        binary: whether bytes may be anything; False where they are texts in UTF-8.
    """
    for leaf in numeric_leaves(output, name="output", missing="all", objects=True):
        damage = damage_of(leaf if allowed is None else allowed.cleared(leaf))
        if damage is not None:
            return Leak(f"{damage.what}{place_of(leaf, damage.rows, damage.columns)}", leaf, damage)
    bad = next(_bad_texts(output, str if binary else (str, bytes)), None)
    return None if bad is None else Leak(f"text that cannot be encoded{f' in field {bad}' if bad else ''}")


def holds_binary(output: Any) -> bool:
    """Whether bytes in an output are no UTF-8."""
    return next(_bad_texts(output, bytes), None) is not None


def place_of(leaf: Leaf, rows: list[int], columns: list[int]) -> str:
    """The first place of something, as the end of a sentence: " in field x, row 3, column 2"."""
    parts = [f" in field {leaf.field}" if leaf.field else ""]
    if len(leaf.shape) > 0 and rows:
        parts.append(f"row {rows[0]}")
    if columns:
        parts.append(f"column {columns[0]}")
    return ", ".join(parts)


def _bad_texts(node: Any, kinds: Any) -> Iterator[str]:
    return (path for path, item in texts_in(node) if isinstance(item, kinds) and not _is_text(item))


def texts_in(node: Any, path: str = "") -> Iterator[tuple[str, str | bytes]]:
    """Every text, and every bytes, in a value, with its dotted path."""
    if isinstance(node, (str, bytes)):
        yield path, node
    elif trees.is_node(node):
        for key, child in trees.children(node):
            yield from texts_in(child, f"{path}.{key}" if path else str(key))
    elif library(node) == "pandas" and hasattr(node, "columns"):
        for at, label in enumerate(node.columns):
            yield from texts_in(node.iloc[:, at], str(label))
    elif library(node) == "polars" and hasattr(node, "columns"):
        for label in node.columns:
            yield from texts_in(node[label].to_list(), str(label))
    elif str(getattr(node, "dtype", "")).startswith(("object", "str", "<U", "|S")):
        yield from ((path, item) for item in flat(node) if isinstance(item, (str, bytes)))


def _is_text(item: str | bytes) -> bool:
    try:
        item.encode("utf-8") if isinstance(item, str) else item.decode("utf-8")
    except UnicodeError:
        return False
    return True


# --- sizes


def largest_number(output: Any) -> float | None:
    """The largest number the floating leaves of an output can hold; None without any."""
    limits = []
    for leaf in numeric_leaves(output, name="output", objects=True):
        if not is_float(leaf) or leaf.dtype in ("float", "object"):
            continue
        values = leaf.values
        info = np.finfo(values.dtype) if isinstance(values, np.ndarray) else torch.finfo(values.dtype)
        limits.append(float(info.max))
    return min(limits, default=None)


def magnitude(sample: Any) -> float:
    """The largest finite magnitude in a sample."""
    largest = 0.0
    for leaf in numeric_leaves(sample):
        seen = extent(leaf.values) if is_float(leaf) else None
        if seen is not None and np.isfinite(seen.largest):
            largest = max(largest, seen.largest)
    return largest
