"""A comparison of reports as an HTML page: tests beside environments, what changed, and how far figures drift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_nanstab.reporting.compared import TITLES, shown_cell, summary
from pytest_nanstab.reporting.comparing import Cell, Change, Comparison
from pytest_nanstab.reporting.html import templates
from pytest_nanstab.reporting.text import plural

_MOST_ROWS = 2000
_MOST_CHANGES = 500
_MOST_TRACKS = 100
_Cells = Sequence[Cell | None]


@dataclass(frozen=True)
class Entry:
    """A cell of the table: its words, and what is told of one that is not like the first."""

    words: str
    mark: str


@dataclass(frozen=True)
class Dot:
    """One environment on the track of a drifting figure: its name, its place in percent, its value in words."""

    name: str
    percent: int
    words: str


@dataclass(frozen=True)
class Shown:
    """One change; `dots` for figures that drift."""

    title: str
    test: str
    words: str
    fails: bool
    dots: Sequence[Dot]


@dataclass(frozen=True)
class _Page:
    summary: str
    fails: bool
    environments: Sequence[str]
    changed: Sequence[tuple[str, Sequence[Entry]]]
    same: Sequence[tuple[str, Sequence[Entry]]]
    same_words: str
    hidden: int
    open: bool
    changes: Sequence[Shown]
    hidden_changes: int


def render(comparison: Comparison, *, everything: bool = False) -> str:
    """The page; `everything` opens the list of the tests that are the same everywhere."""
    return templates().get_template("compare.html.j2").render(page=_page(comparison, everything))


def _page(comparison: Comparison, everything: bool) -> _Page:
    names = {change.test for change in comparison.changes}
    changed = {test: cells for test, cells in comparison.rows.items() if test in names}
    same = {test: cells for test, cells in comparison.rows.items() if test not in names}
    return _Page(
        summary=summary(comparison),
        fails=comparison.fails,
        environments=comparison.environments,
        changed=_rows(changed),
        same=_rows(same),
        same_words=plural(len(same), "test"),
        hidden=max(0, len(changed) - _MOST_ROWS) + max(0, len(same) - _MOST_ROWS),
        open=everything,
        changes=_shown(comparison),
        hidden_changes=max(0, len(comparison.changes) - _MOST_CHANGES),
    )


def _rows(rows: Mapping[str, _Cells]) -> list[tuple[str, Sequence[Entry]]]:
    return [(test, _entries(cells)) for test, cells in list(rows.items())[:_MOST_ROWS]]


def _entries(cells: _Cells) -> list[Entry]:
    """The cells, each marked where it is not like the first environment in which the test ran."""
    first = next((cell for cell in cells if cell and cell.outcome != "skipped"), None)
    return [Entry(shown_cell(cell), _mark(cell, first)) for cell in cells]


def _mark(cell: Cell | None, first: Cell | None) -> str:
    if cell is None or first is None or cell.outcome == "skipped":
        return ""
    if cell.finite != first.finite:
        return "finite here" if cell.finite else "not finite here"
    return "another outcome" if cell.outcome != first.outcome else ""


# --- what changed


def _shown(comparison: Comparison) -> list[Shown]:
    """The changes; the first hundred drifts with a figure."""
    found: list[Shown] = []
    for change in comparison.changes[:_MOST_CHANGES]:
        room = sum(bool(shown.dots) for shown in found) < _MOST_TRACKS
        dots = _dots(change, comparison) if room and not change.fails else []
        found.append(Shown(TITLES[change.kind], change.test, change.words, change.fails, dots))
    return found


def _dots(change: Change, comparison: Comparison) -> list[Dot]:
    norm = change.kind == "gradient norm"
    values = [
        (name, cell.norm if norm else cell.bits)
        for name, cell in zip(comparison.environments, comparison.rows[change.test], strict=True)
        if cell is not None and cell.finite and cell.outcome != "skipped"
    ]
    known = [(name, value) for name, value in values if value is not None]
    places = _places([math.log2(value) if norm else value for _, value in known])
    return [
        Dot(name, place, f"{value:.3g}" if norm else f"{value:.1f} bits")
        for (name, value), place in zip(known, places, strict=True)
    ]


def _places(heights: Sequence[float]) -> list[int]:
    """Where values stand between the least and the largest, in percent, away from the ends."""
    low, high = min(heights, default=0.0), max(heights, default=0.0)
    return [round(4 + 92 * (height - low) / (high - low)) if high > low else 50 for height in heights]
