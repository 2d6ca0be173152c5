"""One field through a whole walk: what was decided about it at its first batch, and a look at each batch's values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pytest_nanstab.checks import _numbers
from pytest_nanstab.checks._columns import Columns, Statistics, as_array, column_extents, finite_extents
from pytest_nanstab.checks._leaves import Array, Leaf, Values, readable
from pytest_nanstab.checks._numbers import Damage, damage_of
from pytest_nanstab.checks._walk_domain import bounds_of, outside
from pytest_nanstab.checks._walk_ledger import Ledger
from pytest_nanstab.checks.finite import facts
from pytest_nanstab.watching import torch_private

_FLOATS = ("float", "bfloat")
_NUMBERS = ("int", "uint", "float")
_LISTS = ("int", "float")  # what lists of Python numbers are called: no dtype that anybody chose
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # which torch only stores
_SUMMED = (torch.float32, torch.float64, torch.bfloat16)  # float16 soon overflows
_SKIPPED = (-1, -100)  # labels that losses, or the code around them, pass over


_Form: TypeAlias = "tuple[str, int]"  # dtype and number of dimensions


@dataclass(frozen=True)
class _Plan:
    """What to look for in values of one form.

    Attributes:
        before: the dtype of earlier batches, where this one's is another.
        inexact: NaN and infinities.
        bounded: values below `low` or above `high`.
        labels: negative numbers that are no label.
        columns: constant columns, and on request their statistics.
    """

    before: str | None
    inexact: bool
    bounded: bool
    low: float
    high: float
    labels: bool
    columns: bool

    @property
    def ranged(self) -> bool:
        """Whether it matters how small and large finite values are."""
        return self.bounded or self.labels

    @property
    def scanned(self) -> bool:
        """Whether the values are looked at, at all."""
        return self.inexact or self.bounded or self.labels or self.columns


class FieldWalk:
    """Looks at one field, batch after batch.

    Args:
        field: its dotted path.
        spec: what the domain says about it, or None.
        ledger: takes faults and notes.
        frame: for a column of a frame the field of the frame; None otherwise.
        loose: whether the field comes from a frame or series, which choose their dtypes chunk by chunk.
        statistics: whether to gather the statistics of columns.

    Attributes:
        columns: the columns of a float field with two dimensions, or the one of a frame's column.
        statistics: on request, of fields with columns.
    """

    def __init__(
        self,
        field: str,
        spec: Any,
        ledger: Ledger,
        *,
        frame: str | None = None,
        loose: bool = False,
        statistics: bool = False,
    ) -> None:
        self.field = field
        self.frame = frame
        self.columns: Columns | None = None
        self.statistics = Statistics() if statistics else None
        self._spec = spec
        self._ledger = ledger
        self._loose = loose
        self._dtypes: dict[int, str] = {}  # the first dtype by number of dimensions
        self._plans: dict[_Form, _Plan] = {}
        self._labels_noted = False

    @torch_private.past_modes
    def look(self, number: int, leaf: Leaf) -> None:
        """Look at the field in one batch, counted from 1."""
        values = leaf.values
        if 0 in values.shape or 0 in leaf.shape:
            return  # an empty list becomes a tensor of whatever dtype is the default
        form = leaf.dtype, len(leaf.shape)
        plan = self._plans.get(form) or self._planned(number, leaf, form)
        if plan.before is not None:
            self._ledger.dtype(number, leaf, plan.before)
        if not plan.scanned:
            return
        if plan.columns and self.statistics is not None and values.ndim == 2:
            self.statistics.add(as_array(values))
        if not plan.ranged and not self._wants_columns(plan) and _is_finite(values):
            return
        low, high = self._extent(values, plan)
        if plan.inexact and not (math.isfinite(low) and math.isfinite(high)):
            self._look_at_damage(number, leaf)
        if plan.bounded and not (low >= plan.low and high <= plan.high):
            evidence = outside(leaf, self._spec, plan.low, plan.high)
            if evidence is not None:
                self._ledger.values(number, leaf, "out of range", evidence)
        if plan.labels and low < 0 and low != -1:
            self._look_at_labels(number, values)

    # --- what is decided once

    def _planned(self, number: int, leaf: Leaf, form: _Form) -> _Plan:
        """Decide what to look for in values of this dtype and number of dimensions, and note what is odd about them."""
        low, high = bounds_of(self._spec, leaf.values) if _is_ordered(leaf) else (-math.inf, math.inf)
        plan = _Plan(
            before=self._judge_dtype(number, leaf),
            inexact=_numbers.is_float(leaf),
            low=low,
            high=high,
            bounded=math.isfinite(low) or math.isfinite(high),
            labels=self._spec is None and not self._loose and len(leaf.shape) == 1 and leaf.dtype.startswith("int"),
            columns=self._has_columns(leaf),
        )
        if leaf.dtype == "object":
            self._ledger.note(self.field, " has dtype object")
        if plan.columns and self.columns is None:
            self.columns = Columns()
        return self._plans.setdefault(form, plan)

    def _has_columns(self, leaf: Leaf) -> bool:
        if self.frame is not None:
            return leaf.dtype.lower().startswith(_NUMBERS)
        table = len(leaf.shape) == len(leaf.values.shape) == 2 and leaf.locate is None
        is_complex = leaf.values.is_complex() if isinstance(leaf.values, Tensor) else leaf.values.dtype.kind == "c"
        return table and _numbers.is_float(leaf) and not is_complex

    def _judge_dtype(self, number: int, leaf: Leaf) -> str | None:
        """The dtype of earlier batches, where this one's is another; of other dimensions it is only noted."""
        dtype, dimensions = leaf.dtype, len(leaf.shape)
        is_number = not dimensions and not isinstance(leaf.values, Tensor)
        if self._loose or dtype in _LISTS or is_number:
            return None
        self._judge_by_domain(leaf)
        known = self._dtypes.get(dimensions)
        if known is None and self._dtypes and dtype not in self._dtypes.values():
            before = " and ".join(f"{name} with {count}" for count, name in self._dtypes.items())
            self._ledger.note(
                self.field, f" is {dtype} with {dimensions} dimensions in batch {number}, {before} before"
            )
        self._dtypes.setdefault(dimensions, dtype)
        return None if known in (None, dtype) else known

    def _judge_by_domain(self, leaf: Leaf) -> None:
        declared = getattr(self._spec, "dtype", None)
        floats = isinstance(declared, str) and declared.startswith(_FLOATS) and leaf.dtype.startswith(_FLOATS)
        if floats and declared != leaf.dtype:
            self._ledger.note(self.field, f" is {leaf.dtype}, the domain says {declared}")

    # --- what is looked at in each batch

    def _wants_columns(self, plan: _Plan) -> bool:
        """Whether the columns' extents are still wanted, and not among the statistics anyway."""
        open_end = plan.columns and self.columns is not None and not self.columns.settled
        return open_end and not (self.statistics is not None and self.statistics.whole)

    def _extent(self, values: Values, plan: _Plan) -> tuple[float, float]:
        """Smallest and largest value, from those of the columns while these are wanted."""
        if self.columns is None or not self._wants_columns(plan):
            return _extent(values)
        rows = values if values.ndim == 2 else values.reshape(-1, 1)
        low, high = column_extents(rows)
        whole = low.min().item(), high.max().item()
        if not all(map(math.isfinite, whole)):
            low, high = finite_extents(as_array(rows))
        self.columns.add(low, high)
        return whole

    def finish(self) -> None:
        """Take the columns' extents from the statistics, after the last batch."""
        if self.columns is not None and self.statistics is not None and self.statistics.whole:
            moments = self.statistics.moments()
            if moments is not None:
                self.columns.add(moments.low, moments.high)

    def _look_at_damage(self, number: int, leaf: Leaf) -> None:
        spec = self._spec
        damage = damage_of(
            leaf,
            allow_inf=spec is not None and bool(spec.allow_infinity),
            allow_nan=spec is not None and bool(spec.allow_nan),
            limit=math.prod(leaf.shape),
        )
        if damage is None:
            return
        if spec is None and not damage.nan and _is_additive_mask(leaf, damage):
            self._ledger.note(self.field, " holds only 0 and -inf: taken for an additive mask")
            return
        evidence = {**facts(leaf, damage), "rows": damage.rows, "columns": damage.columns}
        self._ledger.values(number, leaf, damage.what, evidence)

    def _look_at_labels(self, number: int, values: Values) -> None:
        """Note negative integers that no loss skips, once: a class has none."""
        if self._labels_noted:
            return
        array = as_array(values)
        odd = array[(array < 0) & ~np.isin(array, _SKIPPED)]
        self._labels_noted = odd.size > 0
        if odd.size:
            text = f": negative integers other than -1 and -100, {int(odd[0])} in batch {number}: bad as labels"
            self._ledger.note(self.field, text)


def _is_ordered(leaf: Leaf) -> bool:
    """Whether the leaf's numbers can be read and compared."""
    values = leaf.values
    if isinstance(values, Tensor):
        return readable(values) and not values.is_complex() and not leaf.dtype.startswith("float4")
    return values.dtype.kind in "fiub"


def _is_finite(values: Values) -> bool:
    """Whether all values are finite, where their sum shows it: it is finite only if they are. False is not known.

    A sum runs as fast as memory is read, smallest and largest value take a third longer.
    """
    return isinstance(values, Tensor) and values.dtype in _SUMMED and math.isfinite(values.sum().item())


def _extent(values: Values) -> tuple[float, float]:
    """Smallest and largest value, both NaN with a NaN; of complex numbers of both parts."""
    if isinstance(values, Tensor):
        if values.dtype not in _UNSIGNED:
            low, high = torch.aminmax(_numbers.real(values))
            return low.item(), high.item()
        values = as_array(values)
    array: Array = _numbers.real_array(values)
    with np.errstate(invalid="ignore"):
        return array.min().item(), array.max().item()


def _is_additive_mask(leaf: Leaf, damage: Damage) -> bool:
    named = "mask" in leaf.field.rpartition(".")[2].lower()
    extent = _numbers.extent(leaf.values) if named else None
    return extent is not None and extent.high == 0 and damage.range == [0.0, 0.0]
