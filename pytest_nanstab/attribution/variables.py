"""What the user's code calls a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from torch import Tensor

from pytest_nanstab.attribution.history import storage_key
from pytest_nanstab.attribution.source import variables_of

_MAX_DEPTH = 2
_MAX_ITEMS = 64


def name_of(frame: FrameType | None, tensor: Tensor) -> str | None:
    """The name of a tensor in a user's frame, such as `y`, `batch["x"]` or `self.cache`; None where it has none.

    The tensor itself is looked for first, then one that shares its memory (a view, a slice).
    """
    if frame is None:
        return None
    found = list(_tensors(variables_of(frame)))
    exact = next((name for name, value in found if value is tensor), None)
    if exact is not None:
        return exact
    key = storage_key(tensor)
    return None if key is None else next((name for name, value in found if storage_key(value) == key), None)


def _tensors(variables: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in list(variables.items())[:_MAX_ITEMS]:
        if name.isidentifier():
            yield from _inside(name, value, 0)


def _inside(name: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif depth >= _MAX_DEPTH:
        return
    elif isinstance(value, Mapping):
        for key, item in list(value.items())[:_MAX_ITEMS]:
            yield from _inside(f"{name}[{key!r}]", item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value[:_MAX_ITEMS]):
            yield from _inside(f"{name}[{index}]", item, depth + 1)
    else:
        for key, item in list(getattr(value, "__dict__", {}).items())[:_MAX_ITEMS]:
            if isinstance(item, Tensor):
                yield f"{name}.{key}", item
