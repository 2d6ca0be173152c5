"""How a failed check becomes pytest's failure report; the one place that knows pytest's internal classes for that."""

from __future__ import annotations

from types import TracebackType
from typing import TypeGuard, TypeVar, overload

import pytest
from _pytest._code.code import ExceptionChainRepr, ExceptionRepr, ReprEntry, ReprFileLocation, ReprTraceback

from pytest_nanstab.attribution.source import is_user_file
from pytest_nanstab.errors import StabilityError
from pytest_nanstab.reporting import text
from pytest_nanstab.reporting.block import render, split_source

_E = TypeVar("_E", bound=BaseException)
_Link = tuple[ReprTraceback, "ReprFileLocation | None", "str | None"]
_RUNNERS = ("_pytest", "pluggy")
# Styles whose entries have no place of their own: the block with its location says it all.
_PLACELESS = ("line", "no", "value")


def is_stability_error(value: object) -> TypeGuard[StabilityError]:
    """Whether `value` is one of our exceptions, the only ones `longrepr` is made for."""
    return isinstance(value, StabilityError)


@overload
def prune(failure: pytest.ExceptionInfo[_E], *, own: str = "") -> pytest.ExceptionInfo[_E]: ...
@overload
def prune(failure: _E, *, own: str = "") -> _E: ...
def prune(failure: pytest.ExceptionInfo[_E] | _E, *, own: str = "") -> pytest.ExceptionInfo[_E] | _E:
    """The same failure with a traceback of user frames only, ending at the user's innermost line.

    Frames of torch, trainers, the standard library and this package go; `own` names a file that counts as the user's
    wherever it lies (a test module installed with its package). An `ExceptionInfo` is copied, an exception gets the
    shorter traceback. Without any user frame `failure` comes back unchanged.
    """
    tb = failure.tb if isinstance(failure, pytest.ExceptionInfo) else failure.__traceback__
    frames = _user_frames(tb, own)
    if not frames:
        return failure
    if isinstance(failure, pytest.ExceptionInfo):
        return pytest.ExceptionInfo.from_exc_info((failure.type, failure.value, _rebuilt(frames)))
    return failure.with_traceback(_rebuilt(frames))


def longrepr(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException]) -> ExceptionChainRepr:
    """pytest's own failure representation for a `StabilityError`, with the failure block as its last entry.

    The item shows its pruned traceback in the style of --tb, with the message's first line only; the block follows,
    located at the finding's source. A failure with no user frame is the block alone. Calls `item.repr_failure`, so
    that method must not call this function. Raises `TypeError` for other exceptions.
    """
    value = excinfo.value
    if not is_stability_error(value):
        raise TypeError(f"longrepr is made for StabilityError, got {type(value).__name__}")
    own, full = str(item.path), bool(item.config.getoption("fulltrace", False))
    first, *rest = _lines(value)
    in_user_code = full or bool(_user_frames(excinfo.tb, own))
    shown = item.repr_failure(_shortened(excinfo if full else prune(excinfo, own=own), first))
    *before, last = _links(shown) or [(ReprTraceback([], None, "long"), None, None)]
    with_frames = in_user_code and last[0].style not in _PLACELESS and bool(last[0].reprentries)
    location = _location(item, value, last if in_user_code else None)
    lines = rest if with_frames else [first, "", *rest, *_notes(value)]
    traceback = _with_block(last[0], lines, location, keep_frames=with_frames)
    crash = ReprFileLocation(location.path, location.lineno, f"{type(value).__name__}: {first}")
    result = ExceptionChainRepr([*before, (traceback, crash, None)])
    result.sections.extend(getattr(shown, "sections", ()))
    return result


def _user_frames(tb: TracebackType | None, own: str) -> list[TracebackType]:
    """The user's entries below the last frame of the test runner: above it are plugins and conftest wrappers."""
    frames: list[TracebackType] = []
    while tb is not None:
        filename = tb.tb_frame.f_code.co_filename
        if str(tb.tb_frame.f_globals.get("__name__", "")).partition(".")[0] in _RUNNERS:
            frames.clear()
        elif filename == own or is_user_file(filename):
            frames.append(tb)
        tb = tb.tb_next
    return frames


def _rebuilt(frames: list[TracebackType]) -> TracebackType:
    inner: TracebackType | None = None
    for tb in reversed(frames):
        inner = TracebackType(inner, tb.tb_frame, tb.tb_lasti, tb.tb_lineno)
    assert inner is not None
    return inner


def _lines(value: StabilityError) -> list[str]:
    """The first line of the failure, then the block without it."""
    first, *rest = render(value.findings).split("\n") if value.findings else text.escape_lines(value)
    return [first, *(rest[1:] if rest[:1] == [""] else rest)]


def _notes(value: BaseException) -> list[str]:
    """What was added to the exception on its way, such as Hypothesis' falsifying example."""
    notes = [line for note in getattr(value, "__notes__", ()) for line in str(note).split("\n")]
    return ["", *notes] if notes else []


def _shortened(excinfo: pytest.ExceptionInfo[BaseException], message: str) -> pytest.ExceptionInfo[BaseException]:
    """A stand-in that says only `message`, so that pytest's E-lines hold one line instead of the whole block."""
    value = excinfo.value
    short = type(value).__new__(type(value), message)
    short.__dict__.update(value.__dict__)
    short.__cause__, short.__context__ = value.__cause__, value.__context__
    short.__suppress_context__ = value.__suppress_context__
    return pytest.ExceptionInfo.from_exc_info((type(short), short, excinfo.tb))


def _links(shown: object) -> list[_Link]:
    """The chain of exceptions in what `repr_failure` returned; --tb=native has no chain, a plain text nothing."""
    if isinstance(shown, ExceptionChainRepr):
        return list(shown.chain)
    if isinstance(shown, ExceptionRepr):
        return [(shown.reprtraceback, shown.reprcrash, None)]
    return []


def _location(item: pytest.Item, value: StabilityError, shown: _Link | None) -> ReprFileLocation:
    """The culprit's line; else the user's line as pytest shows it; else the test's own."""
    name = type(value).__name__
    place = split_source(value.findings[0].source) if value.findings else None
    if place is not None:
        return ReprFileLocation(text.escape(place[0]), place[1], name)
    known = _last_place(shown) if shown is not None else None
    if known is not None:
        return ReprFileLocation(known.path, known.lineno, name)
    path, line, _ = item.location
    return ReprFileLocation(path, (line or 0) + 1, name)


def _last_place(shown: _Link) -> ReprFileLocation | None:
    traceback, crash, _ = shown
    entry = traceback.reprentries[-1] if traceback.reprentries else None
    place = entry.reprfileloc if isinstance(entry, ReprEntry) else None
    return place or crash


def _with_block(
    traceback: ReprTraceback, lines: list[str], location: ReprFileLocation, *, keep_frames: bool
) -> ReprTraceback:
    # In style "value" pytest prints lines as they are: no "E" in front, no Python highlighting of what is not Python.
    if not keep_frames:
        return ReprTraceback([ReprEntry(lines, None, None, location, "value")], None, "value")
    block = ReprEntry(["", *lines] if lines else [], None, None, location, "value")
    return ReprTraceback([*traceback.reprentries, block], None, traceback.style)
