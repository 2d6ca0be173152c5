"""Batches without end from whatever the user gave, and the same batch on another device or in another dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_nanstab.suite.setup import Batch, Batches, check_batches


def epoch(batches: Batches, *, argument: str = "batches") -> Iterator[Batch]:
    """One pass over `batches`.

    Raises:
        TypeError: a function returned something that is no iterable of batches.
    """
    source: object = batches
    if not isinstance(batches, Iterable):
        source = batches()
        check_batches(source, f"what {argument}() returns")
    if not isinstance(source, Iterable):
        raise TypeError(f"{argument}() must return an iterable of batches, got {source!r}")
    return iter(source)


def cycle(batches: Batches, *, argument: str = "batches") -> Iterator[Batch]:
    """Batches for ever: one pass after the other.

    Raises:
        ValueError: there is no batch at all, or a one-shot iterator ran out.
    """
    served = 0
    while True:
        before = served
        for batch in epoch(batches, argument=argument):
            served += 1
            yield batch
        if served == before:
            raise ValueError(_ran_out(argument, served))


def _ran_out(argument: str, served: int) -> str:
    remedy = "pass a list, a DataLoader or a function"
    if served == 0:
        what = "is empty, or an iterator that was used up before"
        return f"{argument} {what}: there is nothing to train on; {remedy} that gives batches"
    plural = "" if served == 1 else "es"
    return f"{argument} is a one-shot iterator and ran out after {served} batch{plural}; {remedy}"


def tensors_in(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch (any pytree), in order."""
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def nonfinite_tensor(batch: Batch) -> Tensor | None:
    """The first tensor of a batch that holds a NaN or an infinity."""
    floating = (tensor for tensor in tensors_in(batch) if tensor.is_floating_point() or tensor.is_complex())
    return next((tensor for tensor in floating if not bool(tensor.isfinite().all())), None)


def copied(batch: Batch) -> Batch:
    """The batch with copies of its tensors and arrays, which user code may write into."""

    def copy(leaf: object) -> object:
        if isinstance(leaf, Tensor):
            return leaf.detach().clone()
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    return pytree.tree_map(copy, batch)


def converted(batch: Batch, *, device: torch.device | None, dtype: torch.dtype | None) -> Batch:
    """The batch with its tensors on `device` and its floating tensors in `dtype`; None leaves them as they are."""
    if device is None and dtype is None:
        return batch

    def convert(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        moved = leaf if device is None else leaf.to(device)
        return moved if dtype is None or not moved.is_floating_point() else moved.to(dtype)

    return pytree.tree_map(convert, batch)
