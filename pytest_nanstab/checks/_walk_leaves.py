"""The fields of one batch: at once where it is a plain group of tensors or arrays, as nearly all are."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_nanstab.checks._leaves import Leaf, library, numeric_leaves
from pytest_nanstab.checks._walk_domain import items, joined
from pytest_nanstab.watching import torch_private

ROOT = "batch"


def batch_leaves(batch: Any) -> Iterable[Leaf]:
    """Every numeric leaf of a batch; gaps among numbers count as NaN."""
    plain = _plain_leaves(batch)
    return numeric_leaves(batch, name=ROOT, missing="numbers", objects=True) if plain is None else plain


def _plain_leaves(batch: Any) -> list[Leaf] | None:
    """The leaves of a list, tuple or dict of nothing but dense tensors and arrays of numbers; None of another batch."""
    kind = type(batch)
    if kind is dict:
        pairs: Iterable[tuple[Any, Any]] = batch.items()
    elif kind is list or kind is tuple:
        pairs = enumerate(batch)
    else:
        return None
    leaves = []
    for key, node in pairs:
        leaf = _plain_leaf(node, key)
        if leaf is None:
            return None
        leaves.append(leaf)
    return leaves


def _plain_leaf(node: Any, key: object) -> Leaf | None:
    if type(node) is Tensor:
        if not _is_dense(node):
            return None
        values, dtype = node.detach() if node.requires_grad else node, _name(node.dtype)
        return Leaf(f"{ROOT}[{key!r}]", str(key), values, tuple(node.shape), dtype)
    if type(node) is np.ndarray and node.dtype.kind in "fiub":
        return Leaf(f"{ROOT}[{key!r}]", str(key), node, node.shape, str(node.dtype))
    return None


def _is_dense(tensor: Tensor) -> bool:
    plain = tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_nested
    return plain and not torch_private.is_functorch_wrapped(tensor)


@lru_cache(maxsize=64)
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def frame_fields(batch: Any) -> dict[str, str | None]:
    """The fields that are columns of pandas' or polars' frames, with the field of the frame; of series with None."""
    found: dict[str, str | None] = {}
    stack, seen = [("", batch)], dict[int, Any]()
    while stack:
        path, node = stack.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node  # kept alive, so that its identity stays its own
        if library(node) in ("pandas", "polars"):
            labels = getattr(node, "columns", None)
            found.update({path: None} if labels is None else {joined(path, label): path for label in labels})
        elif not isinstance(node, (Tensor, np.ndarray, str, bytes)):
            stack.extend((joined(path, key), child) for key, child in items(node) or ())
    return found
