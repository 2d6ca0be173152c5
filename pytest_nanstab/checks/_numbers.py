"""Reading numbers: one cheap pass that says whether anything is wrong, and the details only when something is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_nanstab.checks._leaves import Array, Leaf, Values, readable
from pytest_nanstab.watching import torch_private

_UNREADABLE = "float4"  # packed pairs: no kernel reads them, and the format has no NaN


@dataclass(frozen=True)
class Extent:
    """Smallest and largest value; both NaN as soon as one value is."""

    low: float
    high: float

    @property
    def has_nan(self) -> bool:
        """Whether a NaN is among the values."""
        return math.isnan(self.low) or math.isnan(self.high)

    @property
    def has_inf(self) -> bool:
        """Whether an infinity is among the values; unknown (False) when a NaN is."""
        return math.isinf(self.low) or math.isinf(self.high)

    @property
    def largest(self) -> float:
        """The largest magnitude, NaN with a NaN."""
        return math.nan if self.has_nan else max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Damage:
    """The bad values of one leaf.

    Attributes:
        nan: how many are NaN.
        inf: how many are infinite, of either sign.
        count: how many of these are not allowed.
        of: how many values there are.
        first_index: index of the first that is not allowed.
        rows: indices of the bad ones along the first dimension, at most `limit`.
        columns: the same along the last dimension of leaves with two or more.
        range: smallest and largest finite value, None without any.
        row_count, column_count: how many rows and columns there are, listed or not.
    """

    nan: int
    inf: int
    count: int
    of: int
    first_index: list[int]
    rows: list[int]
    columns: list[int]
    range: list[float] | None
    row_count: int = 0
    column_count: int = 0

    @property
    def unlisted(self) -> dict[str, int]:
        """How many rows and columns there are, where that is more than are listed."""
        counts = {"row_count": (self.row_count, self.rows), "column_count": (self.column_count, self.columns)}
        return {name: count for name, (count, listed) in counts.items() if count > len(listed)}

    @property
    def what(self) -> str:
        """NaN, Inf or both, in words."""
        return " and ".join(word for word, number in (("NaN", self.nan), ("Inf", self.inf)) if number)


def is_float(leaf: Leaf) -> bool:
    """Whether the leaf's numbers can be anything but finite, and can be read."""
    values = leaf.values
    if isinstance(values, Tensor):
        inexact = values.is_floating_point() or values.is_complex()
        return inexact and readable(values) and not leaf.dtype.startswith(_UNREADABLE)
    return values.dtype.kind in "fc"


def extent(values: Values) -> Extent | None:
    """Smallest and largest of the values, NaN passed on, without a temporary; None for no values at all.

    Complex numbers count as two values each.
    """
    if isinstance(values, Tensor):
        with torch_private.unseen():
            plain = real(values)
            if plain.numel() == 0:
                return None
            low, high = torch.aminmax(plain)
            return Extent(float(low.item()), float(high.item()))
    array = real_array(values)
    if array.size == 0:
        return None
    with np.errstate(invalid="ignore"):
        return Extent(float(array.min()), float(array.max()))


def real(tensor: Tensor) -> Tensor:
    """The tensor's real numbers in a dtype that has kernels."""
    tensor = tensor.detach()
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return tensor.float()
    return tensor


def real_array(array: Array) -> Array:
    """The array's real numbers; complex ones with a last dimension of 2."""
    if array.dtype.kind != "c":
        return array
    return np.stack([array.real, array.imag], axis=-1)


def damage_of(leaf: Leaf, *, allow_inf: bool = False, allow_nan: bool = False, limit: int = 10) -> Damage | None:
    """The values of a leaf that are not allowed, or None; one pass when there are none."""
    if not is_float(leaf):
        return None
    seen = extent(leaf.values)
    if seen is None or not (seen.has_nan or seen.has_inf):
        return None
    nan, inf, span = _masks(leaf.values)
    bad = (nan & (not allow_nan)) | (inf & (not allow_inf))
    if not bad.any():
        return None
    return Damage(
        nan=0 if allow_nan else int(nan.sum()),
        inf=0 if allow_inf else int(inf.sum()),
        count=int(bad.sum()),
        of=math.prod(leaf.shape),
        first_index=index_of_first(leaf, bad),
        range=span,
        **places(leaf, bad, limit),
        **_sizes(leaf, bad),
    )


def _masks(values: Values) -> tuple[Array, Array, list[float] | None]:
    """Where NaN is, where Inf is (of complex numbers: in either part), and the range of the finite parts."""
    if isinstance(values, Tensor):
        with torch_private.unseen():
            plain = real(values)
            nan, inf = torch.isnan(plain).cpu().numpy(), torch.isinf(plain).cpu().numpy()
            finite = plain[torch.isfinite(plain)]
            span = [float(end.item()) for end in torch.aminmax(finite)] if finite.numel() else None
        return _one_per_value(nan, values.is_complex()), _one_per_value(inf, values.is_complex()), span
    numbers, pairs = real_array(values), values.dtype.kind == "c"
    rest = numbers[np.isfinite(numbers)]
    span = [float(rest.min()), float(rest.max())] if rest.size else None
    return _one_per_value(np.isnan(numbers), pairs), _one_per_value(np.isinf(numbers), pairs), span


def _one_per_value(mask: Any, pairs: bool) -> Array:
    return np.asarray(mask.any(axis=-1) if pairs else mask)


def index_of_first(leaf: Leaf, bad: Array) -> list[int]:
    """Index in the whole of the first True of `bad`."""
    flat = int(np.argmax(bad))
    if leaf.locate is not None:
        return leaf.locate(flat)
    return [int(index) for index in np.unravel_index(flat, bad.shape)]


def places(leaf: Leaf, bad: Array, limit: int) -> dict[str, Any]:
    """Rows (first dimension) and columns (last, of two or more) in which `bad` is True, at most `limit` of each."""
    rows, columns = _places(leaf, bad)
    return {"rows": rows[:limit].tolist(), "columns": columns[:limit].tolist()}


def _sizes(leaf: Leaf, bad: Array) -> dict[str, Any]:
    rows, columns = _places(leaf, bad)
    return {"row_count": len(rows), "column_count": len(columns)}


def _places(leaf: Leaf, bad: Array) -> tuple[Array, Array]:
    nowhere: Array = np.empty(0, dtype=np.int64)
    if leaf.locate is not None or bad.ndim == 0:
        return nowhere, nowhere
    rows = np.flatnonzero(bad.reshape(bad.shape[0], -1).any(axis=1))
    columns = np.flatnonzero(bad.reshape(-1, bad.shape[-1]).any(axis=0)) if bad.ndim > 1 else nowhere
    return rows, columns
