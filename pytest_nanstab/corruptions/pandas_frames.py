"""pandas' frames and series for the catalogue of corruptions."""

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
    """Whether `value` is a frame or a series of pandas."""
    return is_instance(value, "pandas", "DataFrame", "Series")


def corrupted(sample: Any) -> Iterator[Recipe]:
    """Corruptions of a frame or a series; `rows` are positions."""
    if is_instance(sample, "pandas", "DataFrame"):
        return of_frame(PandasView(sample))
    return of_series(PandasView(sample.to_frame()), lambda frame: frame.iloc[:, 0].rename(sample.name))


class PandasView:
    """A pandas frame as the catalogue sees it."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame
        self.pandas = sys.modules["pandas"]
        self.types = self.pandas.api.types
        self.labels: list[Any] = list(frame.columns)
        self.rows = len(frame)

    def holds(self, column: int) -> Holds:
        """By dtype; plain booleans are left alone, as a gap would make objects of them."""
        types, dtype = self.types, self.frame.dtypes.iloc[column]
        is_time = types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype)
        known: tuple[tuple[bool, Holds], ...] = (
            (isinstance(dtype, self.pandas.CategoricalDtype), "category"),
            (types.is_bool_dtype(dtype) or self._is_special(dtype), "other"),
            (is_time, "time"),
            (types.is_integer_dtype(dtype), "whole"),
            (types.is_float_dtype(dtype), "float"),
            (types.is_object_dtype(dtype), "object"),
            (types.is_string_dtype(dtype), "text"),
        )
        return next((kind for fits, kind in known if fits), "other")

    def gap(self, column: int) -> tuple[str, Any] | None:
        """Plain integers become floats with NaN, as on reading a file."""
        dtype = self.frame.dtypes.iloc[column]
        holds = self.holds(column)
        if holds == "other" and not (self._is_masked(dtype) and self.types.is_bool_dtype(dtype)):
            return None
        if holds == "time":
            return "NaT", self.pandas.NaT
        if holds == "object":
            return "None", None
        if holds == "category" or (holds in ("float", "whole") and not self._is_masked(dtype)):
            return "NaN", math.nan
        return "NA", self.pandas.NA

    def _is_special(self, dtype: Any) -> bool:
        """Sparse columns, intervals and periods: numbers and texts do not go into them one by one."""
        return isinstance(dtype, (self.pandas.SparseDtype, self.pandas.IntervalDtype, self.pandas.PeriodDtype))

    def _is_masked(self, dtype: Any) -> bool:
        categorical = isinstance(dtype, self.pandas.CategoricalDtype)
        return bool(self.types.is_extension_array_dtype(dtype)) and not categorical

    def numbers(self, column: int) -> npt.NDArray[Any]:
        """In float64, gaps as NaN."""
        return np.asarray(self.frame.iloc[:, column].to_numpy(dtype=np.float64, na_value=np.nan))

    def limit(self, column: int) -> float:
        """By the size of the dtype, masked or not."""
        dtype = self.frame.dtypes.iloc[column]
        plain = np.dtype(getattr(dtype, "numpy_dtype", dtype) if isinstance(dtype, np.dtype) else _plain(dtype))
        return float(np.finfo(plain).max) if plain.kind == "f" else int(np.iinfo(plain).max)

    def signed(self, column: int) -> bool:
        """Whether a column of numbers can hold negative ones."""
        return not self.types.is_unsigned_integer_dtype(self.frame.dtypes.iloc[column])

    def item(self, column: int, row: int) -> Any:
        """One cell."""
        return self.frame.iat[row, column]

    def with_value(self, columns: list[int], rows: list[int], value: Any) -> Any:
        """By position, because labels may repeat; the dtype of the new column is kept."""
        changed = self.frame.copy(deep=True)
        for column in columns:
            changed.isetitem(column, self._changed(changed.iloc[:, column].copy(), rows, value))
        return changed

    def _changed(self, series: Any, rows: list[int], value: Any) -> Any:
        if isinstance(value, float) and series.dtype.kind in "iu" and not self._is_masked(series.dtype):
            series = series.astype("float64")  # what pandas makes of an integer column with a gap
        if isinstance(series.dtype, self.pandas.CategoricalDtype) and isinstance(value, str):
            series = series.cat.add_categories([value])
        series.iloc[rows] = value
        return series

    def with_text(self, column: int, row: int, text: str) -> Any:
        """The numbers stay numbers beside the text, as in a file that is read in parts."""
        changed = self.frame.copy(deep=True)
        series = changed.iloc[:, column].astype(object)
        series.iloc[row] = text
        changed.isetitem(column, series)
        return changed

    def with_index(self, kind: str) -> Any:
        """Every label twice, or every other one; a frame of several levels keeps its labels."""
        if self.frame.index.nlevels > 1 or self.frame.index.dtype.kind not in "iu":
            return None
        numbers = np.arange(self.rows)
        changed = self.frame.copy(deep=True)
        changed.index = self.pandas.Index(numbers // 2 if kind == "repeated" else 2 * numbers + 1)
        return changed


def _plain(dtype: Any) -> Any:
    """The numpy dtype behind a masked or an Arrow one."""
    return getattr(dtype, "numpy_dtype", None) or np.dtype(str(dtype).lower().partition("[")[0])
