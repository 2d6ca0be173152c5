"""Every corruption that fits a sample: which leaf is corrupted how, and the sample rebuilt around it.

`all_corruptions` is a plain, deterministic list; `pytest_nanstab.strategies.corruptions` draws from the same recipes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from pytest_nanstab.batches import trees
from pytest_nanstab.corruptions import images, numbers, pandas_frames, polars_frames, sparse, structure, texts
from pytest_nanstab.corruptions.model import Corruption, Recipe

_MOST_FIELDS = 24  # of a mapping with more, some that are spread over all


def all_corruptions(sample: Any) -> list[Corruption]:
    """Every corruption that fits `sample`: arrays, tensors, data frames, series, texts, numbers and nested containers.

    A sample of which nothing can go bad (a few booleans, say) gives an empty list.
    """
    return [recipe.made() for recipe in recipes(sample)]


def recipes(sample: Any) -> list[Recipe]:
    """The same, not yet made: for samples too large to hold a hundred copies; no two alike, the smallest first.

    Raises:
        ValueError: the sample is nested deeper than Python can follow, as everything is that contains itself.
    """
    try:
        found = {(recipe.name, recipe.place): recipe for recipe in reversed(list(_recipes(sample)))}
    except RecursionError:
        raise ValueError("sample is nested too deep, or contains itself: no corrupted copies can be made") from None
    return list(reversed(found.values()))


def _recipes(sample: Any) -> Iterator[Recipe]:
    for path, leaf, first in _targets(sample):
        special = list(structure.of_field(path, leaf))
        # A length of 2**40 is nothing that a loop over it comes back from.
        usual = () if special and special[0].name == structure.EMPTY else _of_leaf(leaf)
        gap = [Recipe("None", "", True, _nothing, (), "missing")] if path and _is_float(leaf) else []
        for recipe in (*usual, *special, *gap):
            if not first and not recipe.invalid:
                continue  # what is legal in one record of a list is so in the others
            yield recipe.within(
                partial(_replaced, sample, path), _place(recipe.place, path), _rows(sample, path, recipe.rows)
            )
    yield from structure.of_rows(sample)


def _nothing() -> None:
    """What a record has for a number that is missing."""


def _targets(node: Any, path: trees.Path = (), *, first: bool = True) -> Iterator[tuple[trees.Path, Any, bool]]:
    """(path, part, whether it stands for others like it) of everything that can be corrupted."""
    if not trees.is_node(node) or _is_text_list(node) or _is_number_list(node):
        yield path, node, first
        return
    pairs = trees.children(node)
    if isinstance(node, list):
        yield path, node, first  # as a list of sequences
        for at in dict.fromkeys((len(pairs) // 2, 0, len(pairs) - 1)) if pairs else ():
            yield from _targets(pairs[at][1], (*path, pairs[at][0]), first=first and at == len(pairs) // 2)
        return
    for key, child in pairs if len(pairs) <= _MOST_FIELDS else pairs[:: -(-len(pairs) // _MOST_FIELDS)]:
        yield from _targets(child, (*path, key), first=first)


def _of_leaf(leaf: Any) -> Iterator[Recipe]:
    for fits, corrupted in _KINDS:
        if fits(leaf):
            yield from corrupted(leaf)
            return


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda leaf: isinstance(leaf, types)


def _of_array(array: Any) -> Iterator[Recipe]:
    if array.dtype.kind in "OUT":
        yield from texts.of_text_array(array)
        return
    yield from numbers.of_array(array)
    if images.is_image(array):
        yield from images.of_image(array)


def _of_tensor(tensor: torch.Tensor) -> Iterator[Recipe]:
    yield from numbers.of_tensor(tensor)
    if images.is_image(tensor):
        yield from images.of_image(tensor)


def _of_list(leaf: list[Any]) -> Iterator[Recipe]:
    if _is_text_list(leaf):
        return texts.of_texts(leaf)
    return numbers.of_list(leaf) if _is_number_list(leaf) else structure.of_ragged(leaf)


_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Iterator[Recipe]]], ...] = (
    (sparse.is_sparse, sparse.of_sparse),
    (_is(torch.Tensor), _of_tensor),
    (_is(np.ndarray), _of_array),
    (_is(str, bytes), texts.of_text),
    (_is(list), _of_list),
    (_is(float, np.floating), numbers.of_number),
    (pandas_frames.fits, pandas_frames.corrupted),
    (polars_frames.fits, polars_frames.corrupted),
    (images.is_pil, images.of_pil),
)


def _is_float(leaf: Any) -> bool:
    """A number of Python's, or a scalar of numpy's."""
    return isinstance(leaf, (float, np.floating))


def _is_text_list(node: Any) -> bool:
    return isinstance(node, list) and bool(node) and all(isinstance(item, (str, bytes)) for item in node)


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
    return trees.mapped(lambda _path, leaf: _copied_leaf(leaf), tree, node=trees.is_node)


def _copied_leaf(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):  # deepcopy refuses tensors with history
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return copy.deepcopy(leaf)


def _place(words: str, path: trees.Path) -> str:
    if not path:
        return words
    field = f'"{trees.dotted(path)}"'
    return f"{words} of {field}" if words else field


def _rows(sample: Any, path: trees.Path, rows: Sequence[int]) -> Sequence[int]:
    """In a list of records the record is the row."""
    return (path[0],) if path and isinstance(sample, list) else rows
