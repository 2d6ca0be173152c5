"""polars' frames and series for the catalogue of corruptions."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_nanstab.corruptions.frames import Holds, is_instance, of_frame, of_series
from pytest_nanstab.corruptions.model import Recipe


def fits(value: object) -> bool:
    """Whether `value` is a frame or a series of polars."""
    return is_instance(value, "polars", "DataFrame", "Series")


def corrupted(sample: Any) -> Iterator[Recipe]:
    """Corruptions of a frame or a series; `rows` are positions."""
    if is_instance(sample, "polars", "DataFrame"):
        return of_frame(PolarsView(sample))
    return of_series(PolarsView(sample.to_frame()), lambda frame: frame.to_series(0))


class PolarsView:
    """A polars frame as the catalogue sees it: strictly typed, with null beside NaN, and without row labels."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame
        self.polars = sys.modules["polars"]
        self.labels: list[Any] = list(frame.columns)
        self.rows = frame.height

    def holds(self, column: int) -> Holds:
        """By dtype; booleans, lists and structs are left alone but for their gaps."""
        dtype = self.frame.dtypes[column]
        if dtype.is_float():
            return "float"
        if dtype.is_integer():
            return "whole"
        if dtype.is_temporal():
            return "time"
        if dtype in (self.polars.String, self.polars.Binary):
            return "text"
        return "category" if dtype == self.polars.Categorical else "other"

    def gap(self, column: int) -> tuple[str, Any] | None:
        """Every column can hold null."""
        return ("null", None) if self.frame.dtypes[column] != self.polars.Null else None

    def numbers(self, column: int) -> npt.NDArray[Any]:
        """In float64, gaps as NaN."""
        series = self.frame.to_series(column).cast(self.polars.Float64)
        return np.asarray(series.fill_null(math.nan).to_numpy(), dtype=np.float64)

    def limit(self, column: int) -> float:
        """By dtype."""
        dtype = self.frame.dtypes[column]
        if dtype.is_integer():
            return int(self.polars.select(dtype.max()).item())
        return float(np.finfo(np.float32 if dtype == self.polars.Float32 else np.float64).max)

    def signed(self, column: int) -> bool:
        """Whether a column of numbers can hold negative ones."""
        return not str(self.frame.dtypes[column]).startswith("UInt")

    def item(self, column: int, row: int) -> Any:
        """One cell."""
        return self.frame.item(row, column)

    def with_value(self, columns: list[int], rows: list[int], value: Any) -> Any:
        """The dtype of the column is kept."""
        changed = self.frame.clone()
        for column in columns:
            old = changed.to_series(column)
            items = old.to_list()
            for row in rows:
                items[row] = value
            changed.replace_column(column, self.polars.Series(old.name, items, dtype=old.dtype))
        return changed

    def with_text(self, _column: int, _row: int, _text: str) -> Any:
        """A typed column holds no text among numbers."""
        return None

    def with_index(self, _kind: str) -> Any:
        """Rows have no labels."""
        return None
