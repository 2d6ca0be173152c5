"""Datasets and loaders: putting other data into one, and reading what it yields to the end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pytest_nanstab.batches import trees
from pytest_nanstab.checks._leaves import attributes_of, is_users_class, library
from pytest_nanstab.corruptions.rows import as_array, is_rows

MOST_ITEMS = 1000  # of a source that has no end, or of a large one
_DEPTH = 8


def is_source(value: object) -> bool:
    """Whether `value` yields items or batches: a torch Dataset or DataLoader, or a class of the user's like one."""
    if isinstance(value, (Dataset, DataLoader)):
        return True
    kind = type(value)
    return (
        hasattr(kind, "__getitem__")
        and hasattr(kind, "__len__")
        and not isinstance(value, (Mapping, list, tuple, str, bytes))
        and not is_rows(value)
        and is_users_class(kind)
    )


# --- reading


def read(output: Any) -> Any:
    """What a pipeline returned, with every dataset, loader and iterator in it read to the end and joined."""
    if isinstance(output, DataLoader):
        return joined(list(islice(in_process(output), MOST_ITEMS)), batched=output.batch_size is not None)
    if is_source(output):
        return joined([read(item) for item in _items(output)], batched=False)
    if isinstance(output, Iterator):
        parts = [read(part) for part in islice(output, MOST_ITEMS)]
        return joined(parts, batched=_are_batches(parts))
    if trees.is_node(output) and _holds_source(output):
        return trees.rebuilt(output, [read(child) for _, child in trees.children(output)])
    return output


def _holds_source(node: Any) -> bool:
    return any(
        is_source(child) or isinstance(child, Iterator) or (trees.is_node(child) and _holds_source(child))
        for _, child in trees.children(node)
    )


def in_process(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The same loader without workers: an error keeps its type and its lines, and a run costs no processes."""
    if loader.num_workers == 0:
        return loader
    alone = copy.copy(loader)
    # A loader forbids to change most of its attributes once it is made.
    vars(alone).update(
        num_workers=0,
        prefetch_factor=None,
        persistent_workers=False,
        timeout=0,
        pin_memory=False,
        _DataLoader__multiprocessing_context=None,
        _iterator=None,
    )
    return alone


def _items(dataset: Any) -> Iterator[Any]:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        yield from islice(iter(dataset), MOST_ITEMS)
        return
    for index in range(min(len(dataset), MOST_ITEMS)):
        yield dataset[index]


def _are_batches(parts: list[Any]) -> bool:
    """Whether parts are batches and not items: what has a first dimension has the same, and some have a second."""
    leaves = [leaf for part in parts for _, leaf in trees.leaves(part, node=trees.is_node) if is_rows(leaf)]
    if all(len(leaf.shape) < 2 for leaf in leaves):
        return False
    sizes = [{len(leaf) for _, leaf in trees.leaves(part, node=trees.is_node) if is_rows(leaf)} for part in parts]
    return bool(sizes) and all(len(found) == 1 for found in sizes) and len(set.union(*sizes)) <= 2


def joined(parts: list[Any], *, batched: bool) -> Any:
    """One tree of all parts: batches behind each other, items stacked; a list where they do not fit together."""
    if not parts:
        return []
    first = parts[0]
    if trees.is_node(first) and not isinstance(first, list):
        keys = [key for key, _ in trees.children(first)]
        if not all(type(part) is type(first) and [key for key, _ in trees.children(part)] == keys for part in parts):
            return parts
        columns = zip(*([child for _, child in trees.children(part)] for part in parts), strict=True)
        return trees.rebuilt(first, [joined(list(column), batched=batched) for column in columns])
    return _joined_leaves(parts, batched=batched)


def _joined_leaves(leaves: list[Any], *, batched: bool) -> Any:
    first = leaves[0]
    if isinstance(first, list) and batched and all(isinstance(leaf, list) for leaf in leaves):
        if (first and trees.is_node(first[0])) or any(isinstance(item, torch.Tensor) for item in first):
            return joined([tuple(leaf) for leaf in leaves], batched=True) if len(set(map(len, leaves))) == 1 else leaves
        return [item for leaf in leaves for item in leaf]
    join = _join_of(first, batched=batched)
    if join is None or not _fit_together(leaves, batched=batched):
        return leaves
    return join(leaves)


def _join_of(first: Any, *, batched: bool) -> Callable[[list[Any]], Any] | None:
    if isinstance(first, torch.Tensor):
        return torch.cat if batched and first.ndim else torch.stack
    if isinstance(first, np.ndarray):
        return np.concatenate if batched and first.ndim else np.stack
    return None


def _fit_together(leaves: list[Any], *, batched: bool) -> bool:
    first = leaves[0]
    start = 1 if batched else 0
    return all(
        type(leaf) is type(first) and leaf.dtype == first.dtype and leaf.shape[start:] == first.shape[start:]
        for leaf in leaves
    ) and not (isinstance(first, torch.Tensor) and first.layout is not torch.strided)


# --- other data in


class Holder:
    """A dataset or a loader that holds the sample, and the sample as it holds it."""

    def __init__(self, source: Any, sample: Any) -> None:
        self.source = source
        self.sample = sample
        held = _held_in(source)
        self._shared = _shared(held)
        self._generators = [node for node in held.values() if isinstance(node, torch.Generator)]
        self.as_items = False
        if not _all_held(sample, held):
            self.sample = self._found_equal(sample, held)

    def _found_equal(self, sample: Any, held: dict[int, Any]) -> Any:
        """The sample in the form in which the source keeps it; a list of items stands for what a loader reads."""
        try:
            return _equal_in(sample, held)
        except LookupError:
            if isinstance(self.source, DataLoader) and isinstance(sample, list) and sample:
                self.as_items = True
                return sample
            kind = type(self.source).__name__
            raise TypeError(
                f"sample must be the data that the {kind} holds (the array, frame or list it was made of), or pass a "
                f"function that makes it: lambda data: {kind}(data)"
            ) from None

    def holding(self, data: Any) -> Any:
        """A copy of the source that holds `data` in place of the sample."""
        memo: dict[int, Any] = {}
        if self.as_items:
            memo[id(self.source.dataset)] = data
        else:
            _replace(self.sample, data, memo)
        memo.update(self._shared)
        memo.update((id(generator), _as_now(generator)) for generator in self._generators)
        return copy.deepcopy(self.source, memo)


def _replace(sample: Any, data: Any, memo: dict[int, Any]) -> None:
    """Into `memo`, what a deep copy puts in place of the sample and of its parts."""
    if not isinstance(sample, (str, bytes, int, float, bool, type(None))):
        memo[id(sample)] = data
    if trees.is_node(sample) and trees.is_node(data):
        parts = dict(trees.children(data))
        for key, child in trees.children(sample):
            if key in parts:
                _replace(child, parts[key], memo)


def _held_in(source: Any) -> dict[int, Any]:
    """Everything that an object holds, by identity."""
    found: dict[int, Any] = {}
    stack = [(source, 0)]
    while stack:
        node, depth = stack.pop()
        if id(node) in found or isinstance(node, (str, bytes, int, float, bool, type(None), type)):
            continue
        found[id(node)] = node
        if depth < _DEPTH and not is_rows(node):
            stack.extend((child, depth + 1) for child in _contents(node))
    return found


def _contents(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    if isinstance(node, (list, tuple, set)):
        return list(node)[: 10 * MOST_ITEMS]
    return list(attributes_of(node).values())


def _all_held(sample: Any, held: dict[int, Any]) -> bool:
    if id(sample) in held:
        return True
    parts = [part for _, part in trees.children(sample) if _has_parts(part)] if trees.is_node(sample) else []
    return bool(parts) and all(_all_held(part, held) for part in parts)


def _equal_in(node: Any, held: dict[int, Any]) -> Any:
    """What is held with the same contents as `node`, which may be kept part by part; `LookupError` without any."""
    if is_rows(node):
        return _first(item for item in held.values() if is_rows(item) and _same_numbers(as_array(node), item))
    if _is_plain(node):
        return _first(item for item in held.values() if _is_plain(item) and item == node)
    parts = trees.children(node) if trees.is_node(node) else []
    if not any(_has_parts(part) for _, part in parts):
        raise LookupError
    return trees.rebuilt(node, [_equal_in(part, held) if _has_parts(part) else part for _, part in parts])


def _is_plain(node: Any) -> bool:
    return isinstance(node, list) and not any(is_rows(leaf) for _, leaf in trees.leaves(node, node=trees.is_node))


def _has_parts(node: Any) -> bool:
    return trees.is_node(node) or is_rows(node)


def _first(found: Iterator[Any]) -> Any:
    for item in found:
        return item
    raise LookupError


def _same_numbers(wanted: Any, node: Any) -> bool:
    if tuple(node.shape) != wanted.shape or library(node) == "scipy":
        return False
    values = as_array(node)
    if values.dtype.kind not in "fiub" or wanted.dtype.kind not in "fiub":
        return bool(values.dtype.kind == wanted.dtype.kind and (values == wanted).all())
    return bool(np.allclose(values.astype(np.float64), wanted.astype(np.float64), rtol=1e-5))


def _shared(held: Mapping[int, Any]) -> dict[int, Any]:
    """What is held and cannot be copied, a lock or an open file say, as itself."""
    found = {}
    for key, node in held.items():
        if not _contents(node) and not is_rows(node) and not isinstance(node, torch.Generator):
            try:
                copy.deepcopy(node)
            except (TypeError, RuntimeError, NotImplementedError):
                found[key] = node
    return found


def _as_now(generator: torch.Generator) -> torch.Generator:
    """A generator in the same state, where torch can copy one."""
    return generator.clone_state() if hasattr(generator, "clone_state") else generator
