"""How long a walk takes: lines that tell its progress, and the end of its time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

from pytest_nanstab.progress import Tell

_FIRST = 5.0  # seconds: nobody wonders earlier
_EVERY = 10.0


class WalkClock:
    """Says how far a walk is, and whether its time is over.

    Args:
        name: what the lines begin with.
        seconds: how long the walk may take; None is without end.
        clock: gives seconds since some moment.
        tell: is told how far it is; without it lines on stderr say so, first after 5 s and then every 10 s.
    """

    def __init__(self, name: str, seconds: float | None, clock: Callable[[], float], tell: Tell | None = None) -> None:
        self._name = name
        self._clock = clock
        self._tell = tell
        self._began = clock()
        self._due = self._began + _FIRST
        self._end = math.inf if seconds is None else self._began + seconds

    def over(self, batches: int, faults: int) -> bool:
        """Whether the time is over after so many batches; tells the progress when that is due."""
        now = self._clock()
        if self._tell is not None:
            self._tell(batches, faults)
        elif now >= self._due:
            self._due = now + _EVERY
            self._write(batches, faults, now - self._began)
        return now >= self._end

    def _write(self, batches: int, faults: int, seconds: float) -> None:
        plural = "" if batches == 1 else "es"
        so_far = f"{faults or 'no'} fault{'' if faults == 1 else 's'} so far"
        sys.stderr.write(f"{self._name}: {batches} batch{plural} in {seconds:.0f} s, {so_far}\n")
        sys.stderr.flush()
