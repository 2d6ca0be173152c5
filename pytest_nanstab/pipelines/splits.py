"""Statistics of the wrong rows: a transform that looks at its own split, a fit that saw the test rows.

Both are seen from outside: a row that moves a little must move nothing but itself, unless it is a training row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pytest_nanstab.batches import trees
from pytest_nanstab.checks._leaves import library
from pytest_nanstab.corruptions import rows as row_sets
from pytest_nanstab.corruptions.catalogue import fresh

Array = npt.NDArray[Any]
Run = Callable[[Any], Any]
_Tables = tuple[Array, Array]  # training rows, test rows
_TRAIN = re.compile(r"^(x_?)?(train|training|fit)(ing)?(_?x|_set|_data)?$", re.IGNORECASE)
_TEST = re.compile(r"^(x_?)?(test|testing|val|valid|validation|eval|dev|holdout)(_?x|_set|_data)?$", re.IGNORECASE)
_MOST_PROBES = 48
_FEWEST_ROWS = 6
# A row is moved by a quarter of a standard deviation: enough to change a mean or a range, too little to be an outlier.
_MOVE = 0.25
# Beyond the largest value, to move a range; and so far that whatever sorts out outliers sorts it out.
_BEYOND, _FAR = "beyond", "far"
_FAR_PROBES = 6
# Among others the moved row must stand out by this factor, or it is not known where it went.
_STANDS_OUT = 2.0


@dataclass(frozen=True)
class LeakedStatistics:
    """Rows that changed although only a row of the test part, or of another batch, was moved.

    Attributes:
        how: "company": a row comes out otherwise without others; "own": the test part is scaled by its own rows;
            "before": training rows depend on test rows.
        words: what was seen.
        how_seen: what was done.
    """

    how: Literal["company", "own", "before"]
    words: str
    how_seen: str


# --- fitted objects


def in_company(run: Run, sample: Any) -> LeakedStatistics | None:
    """Whether a fitted transform gives a row other values when other rows are missing.

    A transform for which the order of rows matters (differences, windows) is about neighbours, not statistics, and one
    that cannot take fewer rows cannot be asked.
    """
    rows = row_sets.count_rows(sample)
    if rows is None or rows < 4:
        return None
    try:
        whole = run(fresh(sample))
        back = list(range(rows - 1, -1, -1))
        if row_sets.count_rows(whole) != rows or not _same(run, sample, whole, back):
            return None
        for chosen in (list(range(0, rows, 2)), list(range(rows - 1)), [rows // 2]):
            if not _same(run, sample, whole, chosen):
                alone = "a row alone has" if len(chosen) == 1 else f"{len(chosen)} of {rows} rows have"
                seen = f"rows {', '.join(map(str, chosen[:8]))}{', ...' if len(chosen) > 8 else ''} transformed alone"
                return LeakedStatistics("company", f"{alone} other values without the others", seen)
    except Exception:  # noqa: BLE001 - it refuses other company than it was given
        return None
    return None


def _same(run: Run, sample: Any, whole: Any, rows: list[int]) -> bool:
    return row_sets.same_rows(run(row_sets.take(sample, rows)), row_sets.take(whole, rows))


# --- functions that give two splits


def between_splits(run: Run, sample: Any) -> LeakedStatistics | None:
    """Whether a function that returns a training and a test part lets test rows into the statistics of either."""
    try:
        probe = _Probe(run, sample)
        return probe.leaked() if probe.applies else None
    except Exception:  # noqa: BLE001 - it refuses a moved row: then it cannot be asked
        return None


class _Probe:
    """Rows moved one at a time, and which rows of either part move with them."""

    def __init__(self, run: Run, sample: Any) -> None:
        self.run, self.sample = run, sample
        self.given = _parts(sample, None)
        self.rows = row_sets.count_rows(self.given[1] if self.given else sample) or 0
        output = run(fresh(sample)) if self.rows >= (2 if self.given else _FEWEST_ROWS) else None
        # Whether the parts are called training and test, or came in as two.
        self.named = self.given is not None or isinstance(output, Mapping) or hasattr(output, "_fields")
        self.before = None if output is None else self._tables(output)
        self.applies = self.before is not None and self._repeats() and (self.named or self._splits_by_index())

    def _run(self, data: Any) -> _Tables | None:
        return self._tables(self.run(fresh(data)))

    def _repeats(self) -> bool:
        """Whether the same rows are divided the same way again: a split may be drawn."""
        again = self._run(self.sample)
        return self.before is not None and again is not None and _is_same_partition(self.before, again, None)

    def _splits_by_index(self) -> bool:
        """Whether it is the place of a row that decides where it goes: inliers and outliers are no splits."""
        assert self.before is not None
        for row in self._probes()[:: max(1, len(self._probes()) // _FAR_PROBES)]:
            try:
                after = self._run(_with_moved_row(self.sample, row, test_only=False, by=_FAR))
            except Exception:  # noqa: BLE001 - a row so far away may be refused
                continue
            if after is None or any(len(a) != len(b) for a, b in zip(self.before, after, strict=True)):
                return False
        return True

    def _tables(self, output: Any) -> _Tables | None:
        found = _parts(output, None if self.given else self.rows)
        if found is None:
            return None
        train, test = map(_table, found)
        return None if train is None or test is None else (train, test)

    def leaked(self) -> LeakedStatistics | None:
        """The first proof of a leak; of the training part before that of the test part."""
        for beyond in (False, True):  # a range is not moved by what stays inside it
            found: dict[str, LeakedStatistics] = {}
            for row in self._probes():
                leak = self._moved(row, beyond=beyond)
                if leak is not None:
                    found.setdefault(leak.how, leak)
            if found:
                return found.get("before") or found.get("own")
        return None

    def _probes(self) -> list[int]:
        step = max(1, -(-self.rows // _MOST_PROBES))
        return list(range(0, self.rows, step))

    def _moved(self, row: int, *, beyond: bool) -> LeakedStatistics | None:
        assert self.before is not None
        by = _BEYOND if beyond else _MOVE
        changed = _with_moved_row(self.sample, row, test_only=self.given is not None, by=by)
        try:
            after = self._tables(self.run(changed))
        except Exception:  # noqa: BLE001 - a row that is moved out of a declared range may be refused
            return None
        if after is None or any(a.shape != b.shape for a, b in zip(self.before, after, strict=True)):
            return None
        train, test = (_row_changes(a, b) for a, b in zip(self.before, after, strict=True))
        at = self._place_in_test(row, train, test)
        if at is None or not _is_same_partition(self.before, after, at):
            return None
        others = np.delete(test, at)
        if (train > 0).any():
            return self._told("before", f"{int((train > 0).sum())} of {len(train)} training rows", at)
        if (others > 0).any():
            return self._told("own", f"{int((others > 0).sum())} other test rows", at)
        return None

    def _place_in_test(self, row: int, train: Array, test: Array) -> int | None:
        """The row of the test part that the moved row became; None where it is a training row, or not clear."""
        if self.given is not None:
            return row if len(test) == self.rows else None
        both = np.concatenate([train, test])
        order = np.argsort(both)[::-1]
        clear = both[order[0]] >= _STANDS_OUT * both[order[1]]
        at = int(order[0]) if clear else self._place_of(row)
        return None if at is None or at < len(train) else at - len(train)

    def _place_of(self, row: int) -> int | None:
        """Which row of both parts a row became: the one that equals another when it is made to; None if not clear.

        A row that holds a column's largest value may well stay where it is when it moves, and move all others.
        """
        found: set[int] | None = None
        for other in ((row + 1) % self.rows, (row + 2) % self.rows):
            tables = self._tables(self.run(_with_copied_row(self.sample, row, other)))
            if tables is None:
                return None
            _, groups, counts = np.unique(np.concatenate(tables), axis=0, return_inverse=True, return_counts=True)
            twins = set(np.flatnonzero(counts[groups.ravel()] > 1).tolist())
            found = twins if found is None else found & twins
        return found.pop() if found is not None and len(found) == 1 else None

    @staticmethod
    def _told(how: Literal["own", "before"], rows: str, at: int) -> LeakedStatistics:
        seen = f"test row {at} moved a little, and they changed"
        return LeakedStatistics(how, f"{rows} depend on a test row", seen)


def _is_same_partition(before: _Tables, after: _Tables, at: int | None) -> bool:
    """Whether every row but the one at `at` of the test part is where it was: its rank in each column says so.

    Scaling with other statistics keeps the order of a column; sorting and drawing anew do not.
    """
    if any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return False
    tests = [table if at is None else np.delete(table, at, axis=0) for table in (before[1], after[1])]
    return all(
        bool((np.argsort(a, axis=0, kind="stable") == np.argsort(b, axis=0, kind="stable")).all())
        for a, b in ((before[0], after[0]), (tests[0], tests[1]))
    )


def _row_changes(before: Array, after: Array) -> Array:
    """By how much each row changed, in units of its column's spread; 0 where it is rounding."""
    scale = np.ptp(np.concatenate([before, after]), axis=0)
    rounding = 1e3 * np.finfo(np.float32).eps * 0.1 * np.maximum(np.abs(before).max(axis=0, initial=0.0), scale)
    change = np.abs(after - before)
    shares = np.where(change > rounding, change / np.where(scale > 0, scale, 1.0), 0.0)
    return np.asarray(shares.sum(axis=1))


def _parts(value: Any, rows: int | None) -> tuple[Any, Any] | None:
    """(training part, test part) of what names them so or, of `rows` in all, divides them; None of anything else."""
    if isinstance(value, Mapping):
        train = [item for key, item in value.items() if _TRAIN.match(str(key))]
        test = [item for key, item in value.items() if _TEST.match(str(key))]
        return (train[0], test[-1]) if len(train) == 1 and test else None
    names = getattr(value, "_fields", ())
    if names:
        return _parts(value._asdict(), rows)
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 4) or not all(map(_countable, value)):
        return None
    counts = [row_sets.count_rows(item) for item in value]
    first, second = counts[0], next((count for count in counts if count != counts[0]), counts[0])
    if first is None or second is None or (rows is None and first == second):
        return None
    if rows is not None and first + second != rows:
        return None
    # Two tables, or scikit-learn's order: the features of both before the labels of both.
    return value[0], next((item for item, count in zip(value, counts, strict=True) if count != first), value[1])


def _countable(value: Any) -> bool:
    return row_sets.count_rows(value) is not None


def _table(part: Any) -> Array | None:
    """The floating numbers of a part side by side, one line per row; None without any."""
    columns = []
    for leaf in _tables_in(part):
        whole = row_sets.as_array(leaf)
        values = _numbers_of(leaf) if whole.dtype.kind == "O" else whole
        if values is not None and values.dtype.kind == "f" and values.ndim in (1, 2):
            columns.append(np.asarray(values, dtype=np.float64).reshape(len(values), -1))
    return np.concatenate(columns, axis=1) if columns else None


def _tables_in(part: Any) -> list[Any]:
    if trees.is_node(part):
        return [leaf for _, leaf in trees.leaves(part, node=trees.is_node) if row_sets.is_rows(leaf)]
    return [part] if row_sets.is_rows(part) else []


def _numbers_of(leaf: Any) -> Array | None:
    """The float columns of a frame with other columns beside them."""
    if library(leaf) == "pandas" and hasattr(leaf, "select_dtypes"):
        return np.asarray(leaf.select_dtypes("float").to_numpy(dtype=np.float64))
    return None


# --- moving a row


def _with_moved_row(sample: Any, row: int, *, test_only: bool, by: float | str) -> Any:
    def moved(tree: Any) -> Any:
        return trees.mapped(lambda _path, leaf: _moved_leaf(leaf, row, by), fresh(tree), node=trees.is_node)

    if not test_only:
        return moved(sample)
    found = _parts(sample, None)
    assert found is not None
    parts = [moved(child) if child is found[1] else fresh(child) for _, child in trees.children(sample)]
    return trees.rebuilt(sample, parts)


def _moved_leaf(leaf: Any, row: int, by: float | str) -> Any:
    if not row_sets.is_rows(leaf):
        return leaf
    if library(leaf) in ("pandas", "polars"):
        return _moved_frame(leaf, row, by)
    values = row_sets.as_array(leaf)
    if values.dtype.kind == "f" and row < len(values):
        moved = _moved_to(values[row], values.max(axis=0), values.std(axis=0), by)
        leaf[row] = torch.as_tensor(moved, dtype=leaf.dtype) if isinstance(leaf, torch.Tensor) else moved
    return leaf


def _with_copied_row(sample: Any, row: int, other: int) -> Any:
    rows = row_sets.count_rows(sample) or 0
    taken = row_sets.take(sample, [other if at == row else at for at in range(rows)])
    # The labels stay: they are no part of what is copied.
    return trees.mapped(lambda path, leaf: _relabelled(leaf, _at(sample, path)), taken, node=trees.is_node)


def _at(sample: Any, path: trees.Path) -> Any:
    for key in path:
        sample = dict(trees.children(sample))[key]
    return sample


def _relabelled(leaf: Any, original: Any) -> Any:
    return leaf.set_axis(original.index, axis=0) if library(leaf) == "pandas" else leaf


def _moved_to(value: Any, largest: Any, deviation: Any, by: float | str) -> Any:
    if by == _FAR:
        return largest + 100 * deviation
    return (largest if by == _BEYOND else value) + _MOVE * deviation


def _moved_frame(frame: Any, row: int, by: float | str) -> Any:
    from pytest_nanstab.corruptions.pandas_frames import PandasView
    from pytest_nanstab.corruptions.polars_frames import PolarsView

    if not hasattr(frame, "columns"):
        return frame
    pandas = library(frame) == "pandas"
    changed = frame
    for column in range(len(frame.columns)):
        view: PandasView | PolarsView = PandasView(changed) if pandas else PolarsView(changed)
        if view.holds(column) == "float":
            numbers = view.numbers(column)
            moved = _moved_to(numbers[row], np.nanmax(numbers), np.nanstd(numbers), by)
            changed = view.with_value([column], [row], float(moved))
    return changed
