"""Corruptions of data frames, column by column and by what each column can hold; one catalogue for every library.

pandas and polars are never imported here: a frame brings its library along.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pytest_nanstab.corruptions.model import Recipe
from pytest_nanstab.corruptions.numbers import MAGNITUDES, NONFINITE, OUTLIER, WHOLE, signs
from pytest_nanstab.corruptions.places import MOST_COLUMNS
from pytest_nanstab.corruptions.texts import NUMBERS, changes, family_of

Holds = Literal["float", "whole", "time", "text", "object", "category", "other"]
# What a column of numbers holds when one cell of the file could not be parsed.
NUMBER_TEXTS = (*NUMBERS, "")
UNKNOWN = "never seen before"


class FrameView(Protocol):
    """What the catalogue needs to know of a frame, and how it changes a copy of one."""

    @property
    def labels(self) -> list[Any]:
        """The names of the columns."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    def holds(self, column: int) -> Holds:
        """What a column holds."""

    def gap(self, column: int) -> tuple[str, Any] | None:
        """(name, value) of a missing value in a column; None where it holds none."""

    def numbers(self, column: int) -> npt.NDArray[Any]:
        """A column's numbers in float64, gaps as NaN."""

    def limit(self, column: int) -> float:
        """The largest number a column can hold."""

    def signed(self, column: int) -> bool:
        """Whether a column of numbers can hold negative ones."""

    def item(self, column: int, row: int) -> Any:
        """One cell."""

    def with_value(self, columns: list[int], rows: list[int], value: Any) -> Any:
        """A copy with `value` in these cells; `TypeError`, `ValueError` where a column cannot hold it."""

    def with_text(self, column: int, row: int, text: str) -> Any:
        """A copy in which a column of numbers has become one of objects, with a text; None where there is no such."""

    def with_index(self, kind: str) -> Any:
        """A copy whose row labels repeat ("repeated") or have gaps ("gaps"); None where rows have no labels."""


def is_instance(value: object, library: str, *names: str) -> bool:
    """Whether `value` is an instance of one of a library's classes; False where nobody has imported the library."""
    module = sys.modules.get(library)
    return module is not None and isinstance(value, tuple(getattr(module, name) for name in names))


def of_series(view: FrameView, back: Callable[[Any], Any]) -> Iterator[Recipe]:
    """Every corruption of a series that was made a frame of one column; `back` makes a series of that again."""
    for recipe in of_frame(view):
        place = recipe.place.partition(" of ")[0]
        yield recipe.within(back, "everywhere" if place.startswith("column") else place, recipe.rows)


def of_frame(view: FrameView) -> Iterator[Recipe]:
    """Every corruption of a frame; `rows` are positions, not labels."""
    if not view.rows or not view.labels:
        return
    count = len(view.labels)
    columns = list(range(count)) if count <= MOST_COLUMNS else sorted({0, count // 2, count - 1})
    for column in columns:
        yield from _of_column(_Column(view, column), first=column == columns[0])
    yield from _whole_row(view)
    yield from _labels(view)


class _Column:
    """One column, and the recipes for it."""

    def __init__(self, view: FrameView, column: int) -> None:
        self.view, self.column = view, column
        self.holds = view.holds(column)
        self.middle = view.rows // 2
        self.name = f"column {view.labels[column]!r}"

    def cells(self, name: str, value: Any, rows: list[int], family: Any, *, invalid: bool = False) -> Recipe:
        """A recipe that puts one value into these rows."""
        place = f"row {rows[0]} of {self.name}" if len(rows) == 1 else f"all rows of {self.name}"
        make = partial(self.view.with_value, [self.column], rows, value)
        return Recipe(name, place, invalid, make, tuple(rows), family)

    def places(self) -> list[list[int]]:
        """The middle row, the first, the last, and all of them, none twice."""
        rows = self.view.rows
        wanted = [[self.middle], [0], [rows - 1], list(range(rows))]
        return [place for number, place in enumerate(wanted) if place not in wanted[:number]]


def _of_column(column: _Column, *, first: bool) -> Iterator[Recipe]:
    gap = column.view.gap(column.column)
    if gap is not None:
        name, value = gap
        family: Any = "nonfinite" if name == "NaN" else "missing"
        yield from (column.cells(name, value, rows, family, invalid=True) for rows in column.places())
        if column.view.rows > 2:
            yield _all_but_one(column, name, value, family)
    if column.holds == "float":
        yield from _floats(column, first=first)
    if column.holds == "whole":
        yield from _wholes(column)
    if column.holds in ("float", "whole"):
        yield from _amounts(column)
        yield from _number_texts(column)
    if column.holds in ("text", "object"):
        yield from _texts(column)
    if column.holds == "category":
        yield column.cells("unknown category", UNKNOWN, [column.middle], "category")


def _all_but_one(column: _Column, name: str, value: Any, family: Any) -> Recipe:
    rows = list(range(column.view.rows - 1))
    make = partial(column.view.with_value, [column.column], rows, value)
    return Recipe(f"{name} in all but one", column.name, True, make, tuple(rows), family)


def _floats(column: _Column, *, first: bool) -> Iterator[Recipe]:
    gap = column.view.gap(column.column)
    for name, value in NONFINITE:
        if gap is None or gap[0] != name:
            # Frames have many columns: only the first one goes through every place with infinities.
            for rows in column.places() if first else [[column.middle]]:
                yield column.cells(name, value, rows, "nonfinite", invalid=True)
    for name, value in MAGNITUDES:
        if value <= column.view.limit(column.column) and (first or value > float(np.finfo(np.float32).max)):
            yield column.cells(name, value, [column.middle], "magnitude")


def _wholes(column: _Column) -> Iterator[Recipe]:
    for name, value in WHOLE:
        if value <= column.view.limit(column.column):
            yield column.cells(name, value, [column.middle], "integer")


def _amounts(column: _Column) -> Iterator[Recipe]:
    """An outlier, a constant, and where all was positive zero and a negative amount."""
    values = column.view.numbers(column.column)
    known = values[np.isfinite(values)]
    if not known.size:
        return
    whole = column.holds == "whole"
    cast = round if whole else float
    outlier = OUTLIER * (float(np.abs(known).max()) or 1.0)
    if outlier <= column.view.limit(column.column):
        yield column.cells("outlier (1e6 times the largest)", cast(outlier), [column.middle], "magnitude")
    if known.size > 1 and known.min() != known.max():
        yield column.cells("constant", cast(known[0]), list(range(column.view.rows)), "constant")
    for recipe in signs(known, lambda name, value: column.cells(name, cast(value), [column.middle], "sign")):
        if recipe.name == "zero" or column.view.signed(column.column):
            yield recipe


def _number_texts(column: _Column) -> Iterator[Recipe]:
    for text in NUMBER_TEXTS:
        if column.view.with_text(column.column, column.middle, text) is None:
            return
        place = f"row {column.middle} of {column.name}"
        make = partial(column.view.with_text, column.column, column.middle, text)
        yield Recipe(f"text {text!r}", place, False, make, (column.middle,), "number text")


def _texts(column: _Column) -> Iterator[Recipe]:
    original = column.view.item(column.column, column.middle)
    if not isinstance(original, (str, bytes)):
        return
    for name, invalid, change in changes(original):
        recipe = column.cells(name, change(original), [column.middle], family_of(name), invalid=invalid)
        if _can_be_made(recipe):
            yield recipe


def _can_be_made(recipe: Recipe) -> bool:
    """A column stored as UTF-8 cannot hold a lone surrogate: that does not fit the sample."""
    try:
        recipe.make()
    except (UnicodeEncodeError, TypeError):
        return False
    return True


def _whole_row(view: FrameView) -> Iterator[Recipe]:
    """One row lost in all float columns at once, and one that is zero in all columns of amounts."""
    row = view.rows // 2
    columns = [column for column in range(len(view.labels)) if view.holds(column) == "float"]
    if len(columns) > 1:
        make = partial(view.with_value, columns, [row], math.nan)
        yield Recipe("NaN", f"row {row}", True, make, (row,), "nonfinite")
    amounts = [column for column in range(len(view.labels)) if _is_amount(view, column)]
    if len(amounts) > 1:
        make = partial(view.with_value, amounts, [row], 0)
        yield Recipe("zero", f"row {row}", False, make, (row,), "sign")


def _is_amount(view: FrameView, column: int) -> bool:
    """Whether a column holds numbers and none below zero."""
    if view.holds(column) not in ("float", "whole"):
        return False
    values = view.numbers(column)
    known = values[np.isfinite(values)]
    return bool(known.size) and float(known.min()) >= 0


def _labels(view: FrameView) -> Iterator[Recipe]:
    for name, kind in (("duplicate index", "repeated"), ("index with gaps", "gaps")):
        if view.rows > 1 and view.with_index(kind) is not None:
            yield Recipe(name, "row labels", False, partial(view.with_index, kind), (), "index")
