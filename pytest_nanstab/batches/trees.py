"""Walking and rebuilding nested batches: mappings, lists, tuples, named tuples and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeGuard

Path = tuple[Any, ...]
_DEEPEST = 200  # levels: batches have a few


def is_namedtuple(value: object) -> bool:
    """Whether `value` is an instance of a named tuple class."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def is_container(value: object) -> TypeGuard[Mapping[Any, Any] | list[Any] | tuple[Any, ...]]:
    """Whether `value` is a node of the tree; everything else is a leaf."""
    if type(value).__module__.startswith("torch."):  # PackedSequence is a named tuple whose parts depend on each other
        return False
    return isinstance(value, (Mapping, list, tuple))


def is_node(value: object) -> bool:
    """Whether `value` is a container or a dataclass, which `from_batch` hands through as it is."""
    return is_container(value) or is_record(value)


def is_record(value: object) -> bool:
    """Whether `value` is an instance of a dataclass; a `TensorSpec` is one too, and describes a leaf."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "allow_nan")


def children(node: Any) -> list[tuple[Any, Any]]:
    """The (key, child) pairs of a container; fields of a named tuple go by name, items of a sequence by index."""
    if isinstance(node, Mapping):
        return list(node.items())
    if is_namedtuple(node):
        return [(name, getattr(node, name)) for name in node._fields]
    if is_record(node):
        return [(field.name, getattr(node, field.name)) for field in dataclasses.fields(node)]
    return list(enumerate(node))


def rebuilt(node: Any, values: list[Any]) -> Any:
    """A container like `node` whose children are `values`, in the order of `children`."""
    if isinstance(node, Mapping):
        return _rebuilt_mapping(node, values)
    if is_namedtuple(node):
        return type(node)(*values)
    return _rebuilt_record(node, values) if is_record(node) else type(node)(values)


def _rebuilt_record(node: Any, values: list[Any]) -> Any:
    """Without its `__init__`, which may do more than store; frozen ones included."""
    fresh = copy.copy(node)
    for field, value in zip(dataclasses.fields(node), values, strict=True):
        object.__setattr__(fresh, field.name, value)
    return fresh


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


def leaves(tree: Any, path: Path = (), *, node: Callable[[Any], bool] = is_container) -> Iterator[tuple[Path, Any]]:
    """Every leaf with its path, depth first; `node` says what is none."""
    if not node(tree):
        yield path, tree
        return
    refuse_endless(path)
    for key, child in children(tree):
        yield from leaves(child, (*path, key), node=node)


def mapped(
    function: Callable[[Path, Any], Any], tree: Any, path: Path = (), *, node: Callable[[Any], bool] = is_container
) -> Any:
    """The same tree with every leaf replaced by `function(path, leaf)`."""
    if not node(tree):
        return function(path, tree)
    refuse_endless(path)
    return rebuilt(tree, [mapped(function, child, (*path, key), node=node) for key, child in children(tree)])


def refuse_endless(path: Path) -> None:
    """`ValueError` for what is nested too deep to be a batch, as everything is that contains itself."""
    if len(path) >= _DEEPEST:
        start = ".".join(map(str, path[:4]))
        raise ValueError(f"batch is nested more than {_DEEPEST} levels deep, or contains itself (below {start}...)")


def dotted(path: Path) -> str:
    """A path as users write it: "src.lengths", "1"."""
    return ".".join(map(str, path))
