"""Objects that are remembered as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Living(Generic[T]):
    """Objects with a value each, by identity and held weakly.

    Nothing of Python's runs when one of them dies, as the callbacks of a `WeakSet` do: what a signal raises there is
    lost, be it Ctrl-C or the end of somebody's timeout.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Any], T]] = {}

    def __setitem__(self, owner: Any, value: T) -> None:
        key = id(owner)
        self._entries[key] = weakref.ref(owner, partial(self._entries.pop, key)), value

    def get(self, owner: Any) -> T | None:
        """What is known of an object."""
        known = self._entries.get(id(owner))
        return known[1] if known is not None and known[0]() is owner else None

    def __iter__(self) -> Iterator[Any]:
        """Those that live, in the order in which they came."""
        for reference, _ in tuple(self._entries.values()):
            owner = reference()
            if owner is not None:
                yield owner
