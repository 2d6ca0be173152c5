"""Corruptions of pandas frames and series, column by column and by what each column can hold.

pandas is never imported here: a frame brings it along.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

Made = tuple[str, str, bool, Any, tuple[int, ...]]  # the fields of a Corruption, in order
_NUMBERS = (
    ("NaN", math.nan, True),
    ("+Inf", math.inf, True),
    ("-Inf", -math.inf, True),
    ("1e39 (beyond float32)", 1e39, False),
)


def is_frame(value: object) -> bool:
    """Whether `value` is a pandas DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def is_series(value: object) -> bool:
    """Whether `value` is a pandas Series."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.Series)


def corrupted(sample: Any) -> Iterator[Made]:
    """Corruptions of a frame or a series; `rows` are positions, not index labels."""
    if is_frame(sample):
        yield from _of_frame(sample)
        return
    for name, place, invalid, frame, rows in _of_frame(sample.to_frame()):
        yield name, place.partition(" of ")[0], invalid, frame.iloc[:, 0].rename(sample.name), rows


def _of_frame(frame: Any) -> Iterator[Made]:
    if not len(frame):
        return
    for column in range(frame.shape[1]):
        for name, value, invalid in _fitting(frame.iloc[:, column]):
            # Frames have many columns: only NaN, and the first column, go through every place.
            for place, rows in _rows(len(frame), everywhere=name == "NaN" or column == 0):
                words = f"{place} of column {frame.columns[column]!r}"
                yield name, words, invalid, _with(frame, [column], rows, value), rows
        yield from _texts(frame, column)
    yield from _whole_rows(frame)


def _rows(length: int, *, everywhere: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Positions of a column, none twice: the middle row, and where asked the first, the last and all rows."""
    wanted: list[tuple[str, tuple[int, ...]]] = [("row %d", (length // 2,))]
    if everywhere:
        wanted += [("row %d", (0,)), ("row %d", (length - 1,)), ("all rows", tuple(range(length)))]
    named = {rows: words % rows if "%" in words else words for words, rows in wanted}
    return [(words, rows) for rows, words in named.items()]


def _fitting(series: Any) -> list[tuple[str, Any, bool]]:
    """What a column can hold: floats take all numbers, plain integers become floats with NaN, as on reading a file."""
    pandas = sys.modules["pandas"]
    types, dtype = pandas.api.types, series.dtype
    if types.is_bool_dtype(dtype) and not types.is_extension_array_dtype(dtype):
        return []
    if types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        return [("NaT", pandas.NaT, True)]
    if isinstance(dtype, pandas.CategoricalDtype) or dtype.kind in "iu":
        return [("NA", pandas.NA, True)] if _is_masked(dtype) else [("NaN", math.nan, True)]
    if types.is_float_dtype(dtype):
        limit = 3.5e38 if dtype.itemsize < 8 else math.inf
        return [triple for triple in _NUMBERS if not limit < triple[1] < math.inf]
    if types.is_object_dtype(dtype):
        return [("None", None, True)]
    return [("NA", pandas.NA, True)]


def _is_masked(dtype: Any) -> bool:
    pandas = sys.modules["pandas"]
    return bool(pandas.api.types.is_extension_array_dtype(dtype)) and not isinstance(dtype, pandas.CategoricalDtype)


def _with(frame: Any, columns: list[int], rows: tuple[int, ...], value: Any) -> Any:
    changed = frame.copy(deep=True)
    for column in columns:
        series = changed.iloc[:, column].copy()
        if series.dtype.kind in "iu" and not _is_masked(series.dtype):
            series = series.astype("float64")  # what pandas makes of an integer column with a gap
        series.iloc[list(rows)] = value
        changed = _with_column(changed, column, series)
    return changed


def _with_column(frame: Any, column: int, series: Any) -> Any:
    """By position, because column labels may repeat; the dtype of the new column is kept."""
    frame.isetitem(column, series)
    return frame


def _texts(frame: Any, column: int) -> Iterator[Made]:
    from pytest_nanstab.batches.corruption import TEXTS, with_text  # that module imports this one

    original = frame.iloc[:, column]
    pandas = sys.modules["pandas"]
    types = pandas.api.types
    row = len(frame) // 2
    if not (types.is_object_dtype(original.dtype) or types.is_string_dtype(original.dtype)):
        return
    if isinstance(original.dtype, pandas.CategoricalDtype) or not isinstance(original.iloc[row], str):
        return
    for name, text, invalid in TEXTS:
        try:
            changed = _with(frame, [column], (row,), with_text(original.iloc[row], text))
        except UnicodeEncodeError:  # a column stored as UTF-8 cannot hold a lone surrogate: it does not fit the sample
            continue
        yield name, f"row {row} of column {frame.columns[column]!r}", invalid, changed, (row,)


def _whole_rows(frame: Any) -> Iterator[Made]:
    """One row lost in all float columns at once."""
    types = sys.modules["pandas"].api.types
    columns = [i for i, dtype in enumerate(frame.dtypes) if types.is_float_dtype(dtype)]
    row = len(frame) // 2
    if len(columns) > 1:
        yield "NaN", f"row {row}", True, _with(frame, columns, (row,), math.nan), (row,)
