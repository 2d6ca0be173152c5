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
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D, Bbox, BboxTransform

from pytest_nanstab.reporting.series import Point, Series, width

CLASSES = frozenset({"grid", "limit", "bad", "raw", "clipped", "raw dot", "clipped dot"})

_WIDTH, _HEIGHT = 360, 190  # points; a phone's column shows them at their size
_BOX = (48.0, 26.0, 353.0, 172.0)  # left, bottom, right and top of the curves, in points
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
    sheet = _Sheet(_scale(values, bounds), max(steps, 2))
    _ticks(sheet)
    _mark(sheet, lines, steps)
    for index, bound in enumerate(bounds):
        _bound(sheet, bound, left=index % 2 == 0, near=_is_near(bound.value, values))
    for line in lines:
        _line(sheet, line)
    return sheet.svg()


# --- the vertical scale


@dataclass(frozen=True)
class _Scale:
    """From values to heights; logarithmic ones are powers of ten."""

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


class _Sheet:
    """A figure to draw on in steps and heights. Without Axes, whose ticks take three times as long as all else."""

    def __init__(self, scale: _Scale, last: int) -> None:
        self.scale = scale
        self.last = last
        self._figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), dpi=72)
        self._figure.patch.set_visible(False)
        self._place = BboxTransform(Bbox.from_extents(1, scale.low, last, scale.high), Bbox.from_extents(*_BOX))

    def line(self, across: Sequence[float], up: Sequence[float], style: str) -> None:
        """A line through points; NaN breaks it."""
        self._figure.add_artist(Line2D(across, up, transform=self._place, gid=style))

    def band(self, first: float, last: float, style: str) -> None:
        """A band from bottom to top."""
        low, high = self.scale.low, self.scale.high
        self._figure.add_artist(
            Rectangle((first, low), last - first, high - low, transform=self._place, gid=style, fill=False)
        )

    def text(self, step: float, height: float, words: str, style: str | None = None, **kwargs: Any) -> None:
        """Words at a step and a height, `up` and `right` points away from them."""
        up, right = kwargs.pop("up", 0.0), kwargs.pop("right", 0.0)
        place = self._place + Affine2D().translate(right, up)
        self._figure.text(step, height, words, transform=place, gid=style, parse_math=False, **kwargs)

    def svg(self) -> str:
        """What was drawn."""
        target = io.StringIO()
        canvas: Any = FigureCanvasSVG(self._figure)
        canvas.print_svg(target, metadata=_METADATA)
        return target.getvalue()


def _ticks(sheet: _Sheet) -> None:
    heights, labels = sheet.scale.ticks()
    for height, label in zip(heights, labels, strict=True):
        sheet.line([1, sheet.last], [height, height], "grid")
        sheet.text(1, height, label, right=-5, ha="right", va="center_baseline")
    for step in _step_ticks(sheet.last):
        sheet.text(step, sheet.scale.low, str(step), up=-5, ha="center", va="top")


def _step_ticks(last: int) -> list[int]:
    found = [round(tick) for tick in MaxNLocator(5, integer=True).tick_values(1, last)]
    inside = [tick for tick in found if 1 < tick <= last]
    return [1, *(tick for tick in inside if tick > 1 + (inside[-1] - 1) * 0.08)]


def _mark(sheet: _Sheet, lines: Sequence[Line], steps: int) -> None:
    """A band over the steps where a value is not finite; the first of each kind is named."""
    reach = max((sheet.last - 1) / 300, min(0.5, steps / 200))  # at least a point wide
    stretches = [found for line in lines for found in line.series.stretches(width(steps, _POINTS))]
    for first, last in sorted({(found.first, found.last) for found in stretches}):
        sheet.band(max(1, first - reach), min(sheet.last, last + reach), "bad")
    for word in sorted({found.word for found in stretches}):
        first = min(found.first for found in stretches if found.word == word)
        at = min(max(first, 1 + steps * 0.03), steps * 0.97)
        sheet.text(at, sheet.scale.high, word, "bad", up=3, ha="center")


def _bound(sheet: _Sheet, bound: Bound, *, left: bool, near: bool) -> None:
    """A line with its name above it; the name alone, with the direction, for what is far away."""
    scale, height = sheet.scale, sheet.scale.height(bound.value)
    step, side, right = (1, "left", 4) if left else (sheet.last, "right", -4)
    upper = height > (scale.low + scale.high) / 2
    if near and scale.low <= height <= scale.high:
        sheet.line([1, sheet.last], [height, height], "limit")
        top = (height - scale.low) / (scale.high - scale.low) > 0.88
        sheet.text(step, height, bound.label, "limit", up=-3 if top else 3, right=right, ha=side, va=_side(top))
    else:
        words = f"{bound.label} ({'above' if upper else 'below'})"
        at = scale.high if upper else scale.low
        sheet.text(step, at, words, "limit", up=-3 if upper else 3, right=right, ha=side, va=_side(upper))


def _side(below: bool) -> str:
    return "top" if below else "bottom"


def _line(sheet: _Sheet, line: Line) -> None:
    """The unbroken pieces in one line, and single points as dots."""
    pieces = line.series.pieces(_POINTS)
    joined = [piece for piece in pieces if len(piece) > 1]
    single = [piece * 2 for piece in pieces if len(piece) == 1]
    for style, parts in ((line.style, joined), (f"{line.style} dot", single)):
        if parts:
            _draw(sheet, parts, style)


def _draw(sheet: _Sheet, pieces: Sequence[Sequence[Point]], style: str) -> None:
    across: list[float] = []
    up: list[float] = []
    for piece in pieces:
        across += [*(step for step, _ in piece), math.nan]
        up += [*(sheet.scale.height(value) for _, value in piece), math.nan]
    sheet.line(across, up, style)
