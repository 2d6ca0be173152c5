"""How two splits were scaled, from their columns' statistics: by the training split's, by their own, or together.

Scaled by the training split's statistics, the means of an evaluation split of n rows lie around 0 as widely as chance
has it, 1 / sqrt(n), and its standard deviations 1 / sqrt(2 n) around 1. Both within 0.01 / sqrt(n) in one column, with
n or n - 1 as the divisor, happens by chance once in 5000 times, in the two columns that are the least asked for once in
10**7. Rounding is far below: at 10**6 rows the bound is 1e-5, and float32 leaves 1e-7 times the ratio of mean and
deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from pytest_nanstab.checks._columns import END, Moments, Statistics
from pytest_nanstab.checks._leaves import Array

_PART_OF_NOISE = 0.01
_ROWS = 8
_COLUMNS = 2
# Columns whose smallest and whose largest value stand in one row each. Values with natural ends, pixels or shares, meet
# them in many rows or in none.
_SINGLE_ENDS = 3
# Mean squared distance of the splits' means, in units of its expectation for samples of their own: far below it the
# splits share their rows (evaluation on the training data).
_SHARED = 0.1


def split_notes(train: Mapping[str, Statistics], evaluation: Mapping[str, Statistics]) -> Iterator[str]:
    """A line for each field whose evaluation split was not scaled by the training split's statistics alone."""
    for name, statistics in train.items():
        one, other = statistics.moments(), evaluation[name].moments() if name in evaluation else None
        if one is None or other is None or one.mean.shape != other.mean.shape:
            continue
        told = _told(name or "batch", one, other)
        if told is not None:
            yield told


def _told(name: str, train: Moments, evaluation: Moments) -> str | None:
    both = train.merged(evaluation)
    columns = _speaking(both) & (train.count >= _ROWS) & (evaluation.count >= _ROWS)
    if np.count_nonzero(columns) < _COLUMNS or np.any(_speaking(both) & ~columns):
        return None
    return _standardised(name, train, evaluation, both, columns) or _spanned(name, train, evaluation, both, columns)


def _speaking(moments: Moments) -> Array:
    """The columns of three or more values: constant ones, flags and +-1 designs tell nothing about scaling.

    Of all columns with the same ends and mean, those with two values have the largest variance (Bhatia and Davis).
    """
    spread = moments.high - moments.low
    largest = (moments.high - moments.mean) * (moments.mean - moments.low)
    variance = moments.squares / np.maximum(moments.count, 1)
    return np.asarray(largest - variance > 1e-9 * spread * spread)


# --- mean 0 and standard deviation 1


def _standardised(name: str, train: Moments, evaluation: Moments, both: Moments, columns: Array) -> str | None:
    what = f"every column of {name} has mean 0 and standard deviation 1"
    if _is_standard(evaluation, columns):
        if _share_extremes(train, evaluation, columns):
            return None
        return f"eval_batches: {what} by itself: scaled by its own statistics, not by the training split's"
    if _is_standard(both, columns) and not _is_standard(train, columns):
        return f"batches and eval_batches: {what} over both, in neither alone: fitted before splitting"
    return None


def _is_standard(moments: Moments, columns: Array) -> bool:
    """Whether means are 0 and deviations, over n or n - 1, are 1 up to a hundredth of what chance would leave."""
    count = moments.count[columns]
    near = _PART_OF_NOISE / np.sqrt(count)
    centred = bool(np.all(np.abs(moments.mean[columns]) <= near))
    squares = moments.squares[columns]
    return centred and any(bool(np.all(np.abs(np.sqrt(squares / n) - 1) <= near)) for n in (count, count - 1))


def _share_extremes(train: Moments, evaluation: Moments, columns: Array) -> bool:
    """Whether some column has the same smallest or largest value in both: they hold the same rows."""
    same = (train.low == evaluation.low) | (train.high == evaluation.high)
    return bool(np.any(same[columns]))


# --- from 0 to 1, or from -1 to 1


def _spanned(name: str, train: Moments, evaluation: Moments, both: Moments, columns: Array) -> str | None:
    span = _span(evaluation, columns)
    if span is not None:
        if _share_rows(train, evaluation, columns):
            return None
        how = "scaled by its own smallest and largest values, not by the training split's"
        return f"eval_batches: every column of {name} spans exactly {span} by itself: {how}"
    span = _span(both, columns)
    if span is None or _span(train, columns) is not None:
        return None
    how = "over both, in neither alone: fitted before splitting"
    return f"batches and eval_batches: every column of {name} spans exactly {span} {how}"


def _span(moments: Moments, columns: Array) -> str | None:
    """The ends that all columns have, where they are too many to be met by chance in one row each."""
    low, high = moments.low[columns], moments.high[columns]
    single = (moments.at_low[columns] == 1) & (moments.at_high[columns] == 1)
    if np.count_nonzero(single) < _SINGLE_ENDS or not np.all(np.abs(high - 1) <= END):
        return None
    if _on_a_grid(moments, columns):
        return None
    ends = {"0 to 1": 0.0, "-1 to 1": -1.0}
    return next((words for words, end in ends.items() if np.all(np.abs(low - end) <= END)), None)


def _on_a_grid(moments: Moments, columns: Array) -> bool:
    """Whether all values may be multiples of one of 1/2 to 1/256, as shares and bytes are: their sums are."""
    sums = (moments.mean * moments.count)[columns] * np.arange(2, 257)[:, None]
    return bool(np.any(np.all(np.abs(sums - np.round(sums)) <= 1e-3, axis=1)))


def _share_rows(train: Moments, evaluation: Moments, columns: Array) -> bool:
    apart = (train.mean - evaluation.mean)[columns]
    variance = (train.squares / train.count)[columns]
    expected = variance * (1 / train.count + 1 / evaluation.count)[columns]
    distance = float(np.mean(apart * apart / expected)) if np.all(expected > 0) else math.nan
    return not distance >= _SHARED
