"""Which line is the user's: the innermost frame outside torch, other libraries, the stdlib and this package."""

from __future__ import annotations

import ast
import inspect
import linecache
import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_PACKAGE = str(Path(__file__).resolve().parent.parent) + os.sep
_STDLIB = tuple({str(Path(sysconfig.get_path(name))) + os.sep for name in ("stdlib", "platstdlib")})
_REFERENCES = 3  # to the dictionary of a frame: the frame, the name here, the argument of getrefcount
RUNNER = f"{os.sep}_pytest{os.sep}"  # beyond it is whoever started pytest, the console script for one
_LIBRARY_PARTS = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


_NONFINITE = frozenset({"inf", "+inf", "nan", "NaN", "Inf", "infinity", "Infinity"})


@lru_cache(maxsize=4096)
def is_user_file(filename: str) -> bool:
    """Whether a code object's file is the user's own: a real file in no library."""
    if filename.startswith(("<", _PACKAGE)):
        return False
    if any(part in filename for part in _LIBRARY_PARTS):
        return False
    return not filename.startswith(_STDLIB)


# Beside text that is no Python: nested too deeply, and what CPython 3.11 raises for deep stacks.
_UNPARSED = (SyntaxError, ValueError, RecursionError, MemoryError, SystemError)


def parsed(filename: str) -> ast.Module | None:
    """The syntax tree of a file; None of one that Python does not read."""
    try:
        return ast.parse("".join(linecache.getlines(filename)))
    except _UNPARSED:
        return None


def user_frame(depth: int = 1) -> FrameType | None:
    """The innermost user frame, looking outwards from the caller (`depth` frames up)."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        if RUNNER in frame.f_code.co_filename:
            return None
        frame = frame.f_back
    return frame


def put_in_by_the_test() -> bool:
    """Whether the test that is running names NaN or infinity itself: `weight.data.fill_(float("inf"))`."""
    frame: FrameType | None = sys._getframe(1)
    outermost = None
    while frame is not None and RUNNER not in frame.f_code.co_filename:
        outermost = frame.f_code if is_user_file(frame.f_code.co_filename) else outermost
        frame = frame.f_back
    return outermost is not None and not _NONFINITE.isdisjoint({*outermost.co_names, *map(str, outermost.co_consts)})


def variables_of(frame: FrameType) -> dict[str, Any]:
    """A copy of a frame's variables that leaves none behind.

    Before Python 3.13 a function's frame keeps the dictionary that `f_locals` makes, and with it whatever the function
    deletes afterwards. One that the function itself has from `locals()` is left alone.
    """
    made = frame.f_locals
    variables = dict(made)
    if frame.f_code.co_flags & inspect.CO_OPTIMIZED and type(made) is dict and sys.getrefcount(made) <= _REFERENCES:
        made.clear()
    return variables


def user_traceback(depth: int = 1) -> TracebackType | None:
    """The user's frames of the current call stack, as an exception raised here would have them; they stay alive."""
    frame: FrameType | None = sys._getframe(depth)
    traceback = None
    while frame is not None and RUNNER not in frame.f_code.co_filename:
        if is_user_file(frame.f_code.co_filename):
            traceback = TracebackType(traceback, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return traceback


def to_users_line(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback that ends at the user's innermost line; as it is where there is none."""
    links = []
    while traceback is not None:
        links.append(traceback)
        traceback = traceback.tb_next
    while links and not is_user_file(links[-1].tb_frame.f_code.co_filename):
        links.pop()
    shorter = None
    for link in reversed(links):
        shorter = TracebackType(shorter, link.tb_frame, link.tb_lasti, link.tb_lineno)
    return shorter


def place(filename: str, line: int) -> str:
    """A line as "models/attention.py:31", relative to the working directory when it lies below it."""
    try:
        shown = os.path.relpath(filename)
    except (ValueError, OSError):  # another drive on Windows; a working directory that was deleted
        shown = filename
    return f"{filename if shown.startswith('..') else shown}:{line}"


def user_spot(depth: int = 1) -> tuple[str, int] | None:
    """The innermost user line as (file, line): cheap enough to be taken on every call of a watched function."""
    frame = user_frame(depth + 1)
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def shown(spot: tuple[str, int] | None) -> str | None:
    """A spot as "path:line"."""
    return None if spot is None else place(*spot)


def user_line(depth: int = 1) -> str | None:
    """The innermost user line of the current call stack as "path:line", or None without any."""
    return shown(user_spot(depth + 1))


def spot_of_error(error: BaseException) -> tuple[str, int] | None:
    """The innermost user line that an exception came through."""
    found, traceback = None, error.__traceback__
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if is_user_file(filename):
            found = (filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def is_users_own(optimizer: object) -> bool:
    """Whether an optimizer's step is written in the user's own files."""
    code = getattr(inspect.unwrap(getattr(type(optimizer), "step", len)), "__code__", None)
    return code is not None and is_user_file(code.co_filename)
