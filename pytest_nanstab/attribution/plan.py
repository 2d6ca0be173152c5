"""Whether operations are to be traced: set around a replay, read by every region that opens in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_nanstab.attribution.tracing import Tracing

_CURRENT: list[Tracing] = []


_DEFERRED: list[object] = []


def is_deferred() -> bool:
    """Whether somebody else will explain what is found now, by running it again."""
    return bool(_DEFERRED)


@contextmanager
def deferred() -> Iterator[None]:
    """What is found in the block is explained afterwards."""
    _DEFERRED.append(None)
    try:
        yield
    finally:
        _DEFERRED.pop()


def current() -> Tracing | None:
    """The tracing of the replay that is running; None outside of replays."""
    return _CURRENT[-1] if _CURRENT else None


@contextmanager
def traced(tracing: Tracing) -> Iterator[Tracing]:
    """Every region opened in the block traces its operations; nothing of the user's is held afterwards."""
    _CURRENT.append(tracing)
    try:
        yield tracing
    finally:
        _CURRENT.remove(tracing)
        tracing.forget()
