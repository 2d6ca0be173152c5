"""The figures of one record and what they say in words and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pytest_nanstab.reporting import plots, svg
from pytest_nanstab.reporting.html_tables import Table
from pytest_nanstab.reporting.plots import Bound, Line
from pytest_nanstab.reporting.series import WORDS, Series
from pytest_nanstab.reporting.tolerant import LISTS, Measured, shown

_ALL_TOLD = 40  # steps of a run whose every value stands in the table
_POINTS_TOLD = 16  # of each list of a longer run
_BOUNDS = {
    "loss": ("max_loss",),
    "grad_norm": ("max_grad_norm", "min_grad_norm"),
    "update_ratio": ("max_update_ratio",),
}
_LABELS = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "clipped_grad_norm": "gradient norm after clipping",
    "update_ratio": "largest update ratio of a parameter",
}
_SHORT = {**_LABELS, "clipped_grad_norm": "after clipping", "update_ratio": "update ratio"}


@dataclass(frozen=True)
class Figure:
    """A figure: what it shows, the drawing, and in words what it says.

    Attributes:
        title: what it shows.
        drawing: the SVG element; None where there is too little to draw.
        trouble: why it could not be drawn.
        words: for each curve its class, its label and what it says.
        bounds: the limits, each with the place it was stated.
    """

    title: str
    drawing: Markup | None
    trouble: str
    words: Sequence[tuple[str, str, str]]
    bounds: Sequence[str]


def figures(record: Mapping[str, Any], name: str) -> list[Figure]:
    """Loss, gradient norm and, where it has a limit, update ratio of a run; `name` makes the ids of the page's own."""
    return [
        _figure(record, column, lines, f"{name}-{column}")
        for column, lines in _lines(record["run"])
        if column != "update_ratio" or "max_update_ratio" in record["limits"]
    ]


def _lines(run: Mapping[str, Any]) -> Iterator[tuple[str, list[Line]]]:
    """What is drawn together; a norm that no clip has changed is drawn once."""
    for column in ("loss", "grad_norm", "update_ratio"):
        values: list[Measured] = run[column]
        lines = [Line("raw", Series(_LABELS[column], values))] if _is_measured(values) else []
        clipped = run["clipped_grad_norm"]
        if column == "grad_norm" and _is_measured(clipped) and clipped != values:
            lines.append(Line("clipped", Series(_LABELS["clipped_grad_norm"], clipped)))
        if lines:
            yield column, lines


def _is_measured(values: Sequence[Measured]) -> bool:
    return any(value is not None for value in values)


def _figure(record: Mapping[str, Any], column: str, lines: Sequence[Line], name: str) -> Figure:
    limits = {bound: record["limits"][bound] for bound in _BOUNDS[column] if bound in record["limits"]}
    bounds = [Bound(bound, limit["value"]) for bound, limit in limits.items() if isinstance(limit["value"], float)]
    words = [(line.style, line.series.label, line.series.words()) for line in lines]
    told = [f"{bound} {limit['value']:.4g} ({limit['source']})" for bound, limit in limits.items() if _is_drawn(limit)]
    values = [value for line in lines for _, value in line.series.points]
    title = f"{_LABELS[column]} over the steps{', log scale' if plots.is_log(values, bounds) else ''}"
    described = "; ".join([*(f"{label}: {said}" for _, label, said in words), *told])
    return Figure(title, *_drawing(lines, bounds, name, title, described), words, told)


def _is_drawn(limit: Mapping[str, Any]) -> bool:
    return isinstance(limit["value"], float)


def _drawing(
    lines: Sequence[Line], bounds: Sequence[Bound], name: str, title: str, described: str
) -> tuple[Markup | None, str]:
    """The figure and nothing, or why there is none where there should be one."""
    steps = max(len(line.series.values) for line in lines)
    if steps < 2 or not any(line.series.points for line in lines):
        return None, ""
    try:
        drawn = plots.curves(lines, bounds, steps=steps)
        return svg.inline(drawn, classes=plots.CLASSES, name=name, title=title, description=described), ""
    except Exception as error:  # noqa: BLE001 - a library in no state to draw: the words are worth having alone
        return None, f"{type(error).__name__}: {shown(error)}"


# --- the same as numbers


def values_table(run: Mapping[str, Any]) -> Table | None:
    """What was measured at the steps that matter: all of a short run, of a long one the extremes and some between."""
    columns = [name for name in LISTS if _is_measured(run[name])]
    if not columns:
        return None
    steps = sorted({step for name in columns for step in _telling(Series(name, run[name]))})
    rows = [[str(step), *(_cell(run[name], step) for name in columns)] for step in steps]
    total = max(len(run[name]) for name in columns)
    caption = "Values at every step" if len(steps) == total else f"Values at {len(steps)} of {total} steps"
    return Table(caption, ["step", *(_SHORT[name] for name in columns)], rows, frozenset(range(len(columns) + 1)))


def _telling(series: Series) -> set[int]:
    if len(series.values) <= _ALL_TOLD:
        return set(range(1, len(series.values) + 1))
    kept = {step for piece in series.pieces(_POINTS_TOLD) for step, _ in piece}
    edges = {step for stretch in series.stretches()[:_POINTS_TOLD] for step in (stretch.first, stretch.last)}
    return kept | edges


def _cell(values: Sequence[Measured], step: int) -> str:
    value = values[step - 1] if step <= len(values) else None
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else WORDS[value]
