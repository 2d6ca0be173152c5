"""What a run's list says: its extremes in words, and as few points as a figure needs. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pytest_nanstab.reporting import text
from pytest_nanstab.reporting.tolerant import Measured

Point: TypeAlias = "tuple[int, float]"  # step, value

WORDS = {"nan": "NaN", "inf": "Inf", "-inf": "-Inf"}
_RUNS_TOLD = 3


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps whose values are not finite.

    Attributes:
        first: the first of the steps, counted from 1.
        last: the last of them.
        word: what the first of the values is.
    """

    first: int
    last: int
    word: str

    def __str__(self) -> str:
        """`NaN at step 3`, `Inf at steps 3 to 9`."""
        steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
        return f"{self.word} at {steps}"


@dataclass(frozen=True)
class Series:
    """One value per optimizer step.

    Attributes:
        label: what was measured.
        values: finite numbers; "nan", "inf", "-inf"; None where it was not measured.
    """

    label: str
    values: Sequence[Measured]

    @property
    def points(self) -> list[Point]:
        """The finite values with their steps, which count from 1."""
        return [(step, value) for step, value in enumerate(self.values, start=1) if isinstance(value, float)]

    def stretches(self, gap: int = 1) -> list[Stretch]:
        """Where the values are not finite; stretches fewer than `gap` steps apart are one."""
        found: list[Stretch] = []
        for step, value in enumerate(self.values, start=1):
            if isinstance(value, str):
                if found and step - found[-1].last <= gap:
                    found[-1] = Stretch(found[-1].first, step, found[-1].word)
                else:
                    found.append(Stretch(step, step, WORDS[value]))
        return found

    def pieces(self, most: int) -> list[list[Point]]:
        """At most about `most` points in unbroken pieces: each range of steps keeps its least and its largest value."""
        pieces: list[list[Point]] = [[]]
        for chunk, broken in _chunks(self.values, width(len(self.values), most)):
            if broken and not chunk:
                pieces.append([])
            pieces[-1] += chunk
            if broken and chunk:
                pieces.append([])
        return [piece for piece in pieces if piece]

    def words(self) -> str:
        """First, least, largest and last value, and which steps are missing."""
        parts = [*_extremes(self.points), *_told(self.stretches())]
        missing = sum(value is None for value in self.values)
        parts += [f"not measured at {text.plural(missing, 'step')}"] if missing and parts else []
        return ", ".join(parts) or "not measured"


def width(steps: int, most: int) -> int:
    """How many steps share the two points that are kept of them, so that at most `most` are."""
    return 1 if steps <= most else math.ceil(2 * steps / most)


def _chunks(values: Sequence[Measured], size: int) -> Iterator[tuple[list[Point], bool]]:
    """The points kept of each range of steps, and whether the curve is broken there."""
    for start in range(0, len(values), size):
        part = values[start : start + size]
        points = [(step, value) for step, value in enumerate(part, start=start + 1) if isinstance(value, float)]
        kept = sorted({min(points, key=_value), max(points, key=_value)}) if points else []
        yield kept, not points or any(isinstance(value, str) for value in part)


def _value(point: Point) -> float:
    return point[1]


def _extremes(points: Sequence[Point]) -> list[str]:
    if not points:
        return []
    if len(points) == 1:
        return [f"{_short(points[0][1])} at step {points[0][0]}"]
    least, largest = min(points, key=_value), max(points, key=_value)
    return [
        f"first {_short(points[0][1])}",
        f"least {_short(least[1])} at step {least[0]}",
        f"largest {_short(largest[1])} at step {largest[0]}",
        f"last {_short(points[-1][1])}",
    ]


def _short(value: float) -> str:
    return f"{value:.4g}"


def _told(stretches: Sequence[Stretch]) -> list[str]:
    told = [str(stretch) for stretch in stretches[:_RUNS_TOLD]]
    hidden = len(stretches) - _RUNS_TOLD
    return [*told, f"and not finite in {hidden} more places"] if hidden > 0 else told
