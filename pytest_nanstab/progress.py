"""How far a long run is, for whoever shows it: the rooms that train, walk and search know nothing of terminals.

Standard library only. While nobody shows it, a run costs one comparison per step.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

FIRST = 2.0  # seconds: nobody wonders earlier
EVERY = 0.25

Tell = Callable[..., None]
Show = Callable[[Sequence[str]], None]  # what is running, outermost first; nothing when it is over


def stage(name: str, words: str) -> AbstractContextManager[Tell | None]:
    """A run that may take long; gives the function to call at every step, or None where nobody wants to know.

    Args:
        name: what is running.
        words: how far it is, a format for the numbers that the function is called with.
    """
    board = _BOARDS[-1]
    return nullcontext() if board is None or not board.is_ours() else _Stage(board, name, words)


@contextmanager
def shown_by(show: Show | None) -> Iterator[None]:
    """Show what runs in the block, in this thread and process; None keeps it from whoever shows runs around it."""
    board = None if show is None else _Board(show)
    _BOARDS.append(board)
    try:
        yield
    finally:
        _BOARDS.pop()
        if board is not None:
            board.leave(0)


class _Board:
    """The runs that go on, one inside the other, and when they are next to be shown."""

    def __init__(self, show: Show) -> None:
        self.due = 0.0
        self._show = show
        self._stages: list[_Stage] = []
        self._is_shown = False
        self._process, self._thread = os.getpid(), threading.get_ident()

    def is_ours(self) -> bool:
        """Whether this is the thread that may write, and no child that was forked since."""
        return threading.get_ident() == self._thread and os.getpid() == self._process

    def enter(self, stage: _Stage) -> int:
        """Begin a run; returns how many are around it."""
        if not self._stages:
            self.due = time.monotonic() + FIRST
        self._stages.append(stage)
        return len(self._stages) - 1

    def leave(self, depth: int) -> None:
        """End all runs but the outer ones; with the last of them what is shown goes too."""
        del self._stages[depth:]
        if self._is_shown and not self._stages and self.is_ours():
            self._is_shown = False
            self._show(())

    def show(self, now: float) -> None:
        """Show what is running."""
        self.due = now + EVERY
        if self._stages and self.is_ours():
            self._is_shown = True  # before it is: an interrupt may come in between
            self._show([*(outer.name for outer in self._stages[:-1]), self._stages[-1].told()])


class _Stage:
    """One run on a board. A class, because a generator would be a frame in users' tracebacks."""

    def __init__(self, board: _Board, name: str, words: str) -> None:
        self.name = name
        self._board = board
        self._words = words
        self._numbers: tuple[float, ...] = ()
        self._depth = 0

    def __enter__(self) -> Tell:
        self._depth = self._board.enter(self)
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._board.leave(self._depth)

    def told(self) -> str:
        """Its name, and how far it is."""
        return f"{self.name}, {self._words.format(*self._numbers)}" if self._numbers else self.name

    def _tell(self, *numbers: float) -> None:
        self._numbers = numbers
        now = time.monotonic()
        if now >= self._board.due:
            self._board.show(now)


_BOARDS: list[_Board | None] = [None]
