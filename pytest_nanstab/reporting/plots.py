"""Curves over the steps of a run, drawn by matplotlib; colours and dashes are the page's, by class.

Figures are made without pyplot, so neither the user's figures nor their backend are touched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pytest_nanstab.reporting.series import Point, Series, width

CLASSES = frozenset({"grid", "limit", "bad", "raw", "clipped", "raw dot", "clipped dot"})

_WIDTH, _HEIGHT = 360, 190  # points; a phone's column shows them at their size
_BOX = (0.135, 0.14, 0.845, 0.77)  # left, bottom, width, height
_POINTS = 300
_LOG_FROM = 100.0  # two decades
_NEAR = 1000.0  # a limit farther than this factor from all values would flatten their curve
_HUGE = 1e300  # differences of larger values overflow
_TINY = 1e-300
# The groups of settings that decide how a figure looks.
_OWN = frozenset(
    "agg axes figure font grid lines mathtext patch path svg text xaxis xtick yaxis ytick".split()  # noqa: SIM905
)
_METADATA: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Line:
    """One curve: its class, "raw" or "clipped", and its values."""

    style: str
    series: Series


@dataclass(frozen=True)
class Bound:
    """A limit to draw: its name and its value."""

    name: str
    value: float

    @property
    def label(self) -> str:
        """As it stands in the figure: ASCII only, which every font has."""
        return f"{self.name} {self.value:.4g}"


@contextmanager
def drawing() -> Iterator[None]:
    """Draw by matplotlib's own defaults, whatever the session has set; its settings are as before afterwards."""
    library: Any = matplotlib  # its own types differ from version to version
    ours = {name: value for name, value in library.rcParamsDefault.items() if name.split(".")[0] in _OWN}
    ours |= {"svg.fonttype": "none", "svg.hashsalt": "nanstab", "path.simplify": False, "font.size": 11}
    with library.rc_context(ours):
        yield


def curves(lines: Sequence[Line], bounds: Sequence[Bound], *, steps: int) -> str:
    """An SVG of `lines` over steps 1 to `steps`, with `bounds` as labelled lines and the non-finite steps marked."""
    values = [value for line in lines for _, value in line.series.points]
    scale = _scale(values, bounds)
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), dpi=72)
    canvas: Any = FigureCanvasSVG(figure)
    axes = _axes(figure, scale, steps)
    _mark(axes, lines, steps)
    for index, bound in enumerate(bounds):
        _bound(axes, bound, scale, left=index % 2 == 0, near=_is_near(bound.value, values))
    for line in lines:
        _line(axes, line, scale)
    target = io.StringIO()
    canvas.print_svg(target, metadata=_METADATA)
    return target.getvalue()


# --- the vertical scale


@dataclass(frozen=True)
class _Scale:
    """From values to heights; logarithmic ones are powers of ten on linear axes, which draws three times as fast."""

    low: float
    high: float
    log: bool

    def height(self, value: float) -> float:
        if self.log:
            return math.log10(max(value, _TINY)) if value > 0 else self.low
        return min(max(value, -_HUGE), _HUGE)

    def ticks(self) -> tuple[list[float], list[str]]:
        if self.log:
            heights = _decades(self.low, self.high)
            return heights, [_power(round(height)) for height in heights]
        heights = [float(tick) for tick in MaxNLocator(4).tick_values(self.low, self.high)]
        heights = [height for height in heights if self.low <= height <= self.high]
        return heights, _labels(heights)


def _scale(values: Sequence[float], bounds: Sequence[Bound]) -> _Scale:
    shown = _shown(values, bounds)
    log = is_log(values, bounds)
    floor = min((value for value in shown if value > 0), default=1.0)
    scale = _Scale(math.log10(max(floor, _TINY)) if log else 0.0, 0.0, log)
    heights = [scale.height(value) for value in shown]
    low, high = min(heights, default=0.0), max(heights, default=1.0)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return _Scale(low - room, high + room, log)


def is_log(values: Sequence[float], bounds: Sequence[Bound]) -> bool:
    """Whether the vertical axis is logarithmic: none is negative, and they span more than two decades."""
    shown = _shown(values, bounds)
    positive = [value for value in shown if value > 0]
    return bool(positive) and min(shown) >= 0 and max(positive) / _LOG_FROM > min(positive)


def _shown(values: Sequence[float], bounds: Sequence[Bound]) -> list[float]:
    return [*values, *(bound.value for bound in bounds if _is_near(bound.value, values))]


def _is_near(limit: float, values: Sequence[float]) -> bool:
    """Whether a limit is close enough to the values to stand in one figure with them."""
    largest = max(map(abs, values), default=0.0)
    return limit <= 0 or not largest or (abs(limit) / _NEAR <= largest and largest / _NEAR <= abs(limit))


def _decades(low: float, high: float) -> list[float]:
    every = max(1, math.ceil((high - low) / 5))
    return [float(power) for power in range(math.ceil(low), math.floor(high) + 1) if power % every == 0]


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -4 < exponent < 4 else f"1e{exponent}"


def _labels(ticks: Sequence[float]) -> list[str]:
    """As few digits as tell the ticks apart."""
    for digits in range(3, 16):
        labels = [f"{tick:.{digits}g}" for tick in ticks]
        if len(set(labels)) == len(labels):
            break
    return labels


# --- the parts


def _axes(figure: Figure, scale: _Scale, steps: int) -> Axes:
    axes = figure.add_axes(_BOX)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=11)
    axes.set_xlim(1, max(steps, 2))
    axes.set_ylim(scale.low, scale.high)
    heights, labels = scale.ticks()
    axes.set_yticks(heights, labels)
    axes.set_xticks(_step_ticks(steps))
    for height in heights:
        axes.axhline(height, gid="grid", clip_on=False)
    return axes


def _step_ticks(steps: int) -> list[int]:
    found = [round(tick) for tick in MaxNLocator(5, integer=True).tick_values(1, max(steps, 2))]
    inside = [tick for tick in found if 1 < tick <= max(steps, 2)]
    return [1, *(tick for tick in inside if tick > 1 + (inside[-1] - 1) * 0.08)]


def _mark(axes: Axes, lines: Sequence[Line], steps: int) -> None:
    """A band over the steps where a value is not finite; the first of each kind is named."""
    least = max(steps - 1, 1) / 150  # two points wide
    stretches = [found for line in lines for found in line.series.stretches(width(steps, _POINTS))]
    drawn = sorted({(found.first, found.last) for found in stretches})
    for first, last in drawn:
        reach = max(least, min(1.0, steps / 100)) / 2
        axes.axvspan(max(1, first - reach), min(max(steps, 2), last + reach), gid="bad", clip_on=False)
    for word in sorted({found.word for found in stretches}):
        first = min(found.first for found in stretches if found.word == word)
        at = min(max(first, 1 + steps * 0.03), steps * 0.97)
        axes.text(at, 1.02, word, transform=axes.get_xaxis_transform(), ha="center", gid="bad")


def _bound(axes: Axes, bound: Bound, scale: _Scale, *, left: bool, near: bool) -> None:
    height = scale.height(bound.value)
    at, side = (0.01, "left") if left else (0.99, "right")
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": side, "gid": "limit"}
    if near and scale.low <= height <= scale.high:
        axes.axhline(height, gid="limit", clip_on=False)
        share = (height - scale.low) / (scale.high - scale.low)
        above = share < 0.88
        axes.text(at, share + (0.02 if above else -0.02), bound.label, va="bottom" if above else "top", **place)
    else:
        above = height > (scale.low + scale.high) / 2
        where = "above" if above else "below"
        axes.text(at, 0.98 if above else 0.02, f"{bound.label} ({where})", va="top" if above else "bottom", **place)


def _line(axes: Axes, line: Line, scale: _Scale) -> None:
    """The unbroken pieces in one line, and single points as dots."""
    pieces = line.series.pieces(_POINTS)
    joined = [piece for piece in pieces if len(piece) > 1]
    single = [piece * 2 for piece in pieces if len(piece) == 1]
    for style, parts in ((line.style, joined), (f"{line.style} dot", single)):
        if parts:
            _draw(axes, parts, scale, style)


def _draw(axes: Axes, pieces: Sequence[Sequence[Point]], scale: _Scale, style: str) -> None:
    across: list[float] = []
    up: list[float] = []
    for piece in pieces:
        across += [*(step for step, _ in piece), math.nan]
        up += [*(scale.height(value) for _, value in piece), math.nan]
    axes.plot(across, up, gid=style, clip_on=False)
