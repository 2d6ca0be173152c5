"""What a pipeline returned: its leaves with shape and dtype, and what in it is no value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pytest_nanstab.batches import trees
from pytest_nanstab.checks._leaves import Leaf, library, numeric_leaves
from pytest_nanstab.checks._numbers import Damage, damage_of


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
    elif trees.is_container(node) and not _is_plain_list(node):
        for key, child in trees.children(node):
            yield from _forms(f"{path}.{key}", child)
    elif hasattr(node, "shape") and hasattr(node, "dtype"):
        yield path, Form(type(node).__name__, tuple(node.shape), str(node.dtype).removeprefix("torch."))
    else:
        items = node if isinstance(node, list) else [node]
        kinds = ", ".join(sorted({_word(item) for item in items}))
        yield path, Form(type(node).__name__, (len(node),) if isinstance(node, list) else (), kinds)


def _is_plain_list(node: Any) -> bool:
    return isinstance(node, list) and not any(trees.is_container(item) or hasattr(item, "shape") for item in node)


def _word(item: Any) -> str:
    return "number" if isinstance(item, (int, float)) and not isinstance(item, bool) else type(item).__name__


@dataclass(frozen=True)
class Leak:
    """Something in the output that is no value.

    Attributes:
        words: "NaN in field x, row 3, column 2".
        leaf: where it is; None for text.
        damage: what it is; None for text.
    """

    words: str
    leaf: Leaf | None = None
    damage: Damage | None = None


def leak(output: Any) -> Leak | None:
    """The first NaN, infinity, missing value or text that no encoder accepts."""
    for leaf in numeric_leaves(output, name="output", missing="all"):
        damage = damage_of(leaf)
        if damage is not None:
            return Leak(_where(leaf, damage), leaf, damage)
    bad = next(_bad_texts("", output), None)
    return None if bad is None else Leak(f"text that cannot be encoded{f' in field {bad}' if bad else ''}")


def _where(leaf: Leaf, damage: Damage) -> str:
    parts = [f"{damage.what} in field {leaf.field}" if leaf.field else damage.what]
    if len(leaf.shape) > 0 and damage.rows:
        parts.append(f"row {damage.rows[0]}")
    if damage.columns:
        parts.append(f"column {damage.columns[0]}")
    return ", ".join(parts)


def _bad_texts(path: str, node: Any) -> Iterator[str]:
    if isinstance(node, str):
        if not _encodes(node):
            yield path
    elif trees.is_container(node):
        for key, child in trees.children(node):
            yield from _bad_texts(f"{path}.{key}" if path else str(key), child)
    elif library(node) == "pandas" and hasattr(node, "columns"):
        for at, label in enumerate(node.columns):
            yield from _bad_texts(str(label), node.iloc[:, at])
    elif str(getattr(node, "dtype", "")).startswith(("object", "str", "<U")):
        for item in node.tolist():
            if isinstance(item, str):
                yield from _bad_texts(path, item)


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
