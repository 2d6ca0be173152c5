"""Whether operations are to be traced: set around a replay, read by every region that opens in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_nanstab import progress

if TYPE_CHECKING:
    from pytest_nanstab.attribution.tracing import Tracing
    from pytest_nanstab.findings import Finding

_CURRENT: list[Tracing] = []
GIVEN_UP = "tracing the operations took too long and was given up: fewer steps, or a smaller model, show the operation"


# What is known on the spot about findings that a rerun will explain better, by block of deferral.
Known = list["tuple[Finding, Finding]"]
_DEFERRED: list[Known] = []


def is_deferred() -> bool:
    """Whether somebody else will explain what is found now, by running it again."""
    return bool(_DEFERRED)


def keep(finding: Finding, told: Finding) -> None:
    """Keep what a repetition on the spot has shown, for the case that the rerun shows nothing."""
    _DEFERRED[-1].append((finding, told))


@contextmanager
def deferred() -> Iterator[Known]:
    """What is found in the block is explained afterwards; the list fills with what is known before that."""
    known: Known = []
    _DEFERRED.append(known)
    try:
        yield known
    finally:
        _DEFERRED.pop()


def broken_off(error: BaseException) -> str:
    """Why the operation behind a finding is not known: looking for it met something of the user's that raised."""
    return f"looking for the operation ended in a {type(error).__name__}"


def patience(seconds: float) -> float:
    """How many seconds a traced repetition of what took so many may take: recurrences have thousands of operations."""
    return 4 * seconds + 5


def current() -> Tracing | None:
    """The tracing of the replay that is running; None outside of replays."""
    return _CURRENT[-1] if _CURRENT else None


@contextmanager
def traced(tracing: Tracing) -> Iterator[Tracing]:
    """Every region opened in the block traces its operations; nothing of the user's is held afterwards."""
    _CURRENT.append(tracing)
    try:
        with progress.stage("tracing", "step {}") as tracing.tell:
            yield tracing
    finally:
        _CURRENT.remove(tracing)
        tracing.forget()
