"""Walking and rebuilding nested batches: mappings, lists, tuples and named tuples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeGuard

Path = tuple[Any, ...]


def is_namedtuple(value: object) -> bool:
    """Whether `value` is an instance of a named tuple class."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def is_container(value: object) -> TypeGuard[Mapping[Any, Any] | list[Any] | tuple[Any, ...]]:
    """Whether `value` is a node of the tree; everything else is a leaf."""
    if type(value).__module__.startswith("torch."):  # PackedSequence is a named tuple whose parts depend on each other
        return False
    return isinstance(value, (Mapping, list, tuple))


def children(node: Any) -> list[tuple[Any, Any]]:
    """The (key, child) pairs of a container; fields of a named tuple go by name, items of a sequence by index."""
    if isinstance(node, Mapping):
        return list(node.items())
    if is_namedtuple(node):
        return [(name, getattr(node, name)) for name in node._fields]
    return list(enumerate(node))


def rebuilt(node: Any, values: list[Any]) -> Any:
    """A container like `node` whose children are `values`, in the order of `children`."""
    if isinstance(node, Mapping):
        return _rebuilt_mapping(node, values)
    if is_namedtuple(node):
        return type(node)(*values)
    return type(node)(values)


def _rebuilt_mapping(node: Mapping[Any, Any], values: list[Any]) -> Any:
    pairs = dict(zip(node, values, strict=True))
    if type(node) is dict:
        return pairs
    if isinstance(node, MutableMapping):
        fresh = copy.copy(node)  # keeps what a subclass carries (tokenizer outputs, ordered and default dicts)
        for key, value in pairs.items():
            fresh[key] = value
        return fresh
    return type(node)(pairs)  # type: ignore[call-arg]


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf with its path, depth first."""
    if not is_container(tree):
        yield path, tree
        return
    for key, child in children(tree):
        yield from leaves(child, (*path, key))


def mapped(function: Callable[[Path, Any], Any], tree: Any, path: Path = ()) -> Any:
    """The same tree with every leaf replaced by `function(path, leaf)`."""
    if not is_container(tree):
        return function(path, tree)
    return rebuilt(tree, [mapped(function, child, (*path, key)) for key, child in children(tree)])


def dotted(path: Path) -> str:
    """A path as users write it: "src.lengths", "1"."""
    return ".".join(map(str, path))
