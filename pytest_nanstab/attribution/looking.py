"""Looking at tensors for the tracer: is anything bad in them, and what were the operands of what went bad."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pytest_nanstab.attribution.history import Made, Operand
from pytest_nanstab.ranks.sharding import is_sharded, local
from pytest_nanstab.watching import measure

# What stands in for a bad value when an operation is repeated without it: an ordinary number at which log, sqrt, div,
# acos, atanh and their kin are all finite.
_ORDINARY = 0.5


def tensors_of(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments or results, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_of(value)


def numbers_of(values: Iterable[Any]) -> tuple[Any, ...]:
    """The plain numbers and lists of numbers among arguments."""
    return tuple(v for v in values if isinstance(v, (bool, int, float)) or (isinstance(v, (list, tuple)) and _plain(v)))


def _plain(values: Any) -> bool:
    return all(isinstance(value, (bool, int, float)) for value in values)


def is_bad(tensor: Tensor) -> bool:
    """Whether a floating tensor holds a NaN or an infinity; False where it cannot be read."""
    if type(tensor) in (Tensor, Parameter) and tensor.layout is torch.strided and not tensor.is_meta:
        if tensor._is_zerotensor():
            return False
        if not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel():
            return bool(tensor.is_complex() and tensor.numel()) and _extent_is_bad(tensor)
        try:
            low, high = torch.aminmax(tensor)
        except RuntimeError:  # functorch's wrappers, a device without the kernel
            return _extent_is_bad(tensor)
        return not (math.isfinite(low.item()) and math.isfinite(high.item()))
    return _extent_is_bad(tensor)


def has_nan(tensor: Tensor) -> bool:
    """Whether a tensor holds a NaN."""
    seen = measure.extent(tensor)
    return seen is not None and seen.has_nan


def _extent_is_bad(tensor: Tensor) -> bool:
    seen = measure.extent(tensor)
    return seen is not None and not seen.finite


def facts_of(tensor: Tensor) -> dict[str, Any]:
    """Dtype, shape, counts, first index, columns, number of rows and range of a bad tensor, as findings have them."""
    places = measure.places_in_data(tensor)
    return measure.nonfinite_facts(tensor) | {name: value for name, value in places.items() if name != "rows"}


def bad_rows(tensor: Tensor) -> tuple[int, ...]:
    """The first indices of the bad values, at most a few."""
    return tuple(measure.bad_along(tensor, 0)[0])


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor with ordinary numbers in place of its bad values."""
    values = tensor.detach()
    if values.layout is not torch.strided:
        return values.to_dense().nan_to_num(_ORDINARY, _ORDINARY, _ORDINARY).to_sparse()
    return torch.where(torch.isfinite(values), values, torch.full((), _ORDINARY, dtype=values.dtype))


def operand(tensor: Tensor, made: Made | None, first: list[int] | None, shape: tuple[int, ...] | None) -> Operand:
    """What an operation was given in one argument; `first` is where its result of that shape went bad first."""
    tensor = local(tensor) if is_sharded(tensor) else tensor
    values = measure.plain(tensor)
    kind, size = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if values is None:
        return _of_integers(tensor, made, kind, size, _value_at(tensor, first, shape))
    finite = torch.isfinite(values)
    good = values[finite]
    nan = int(torch.isnan(values).sum())
    bounds: tuple[float | None, float | None, float | None] = (None, None, None)
    if good.numel():
        bounds = (good.min().item(), good.max().item(), good.abs().min().item())
    zeros = int((good == 0).sum())
    inf = int(values.numel() - good.numel()) - nan
    return Operand(made, kind, size, *bounds, zeros, nan, inf, _value_at(tensor, first, shape))


def _of_integers(tensor: Tensor, made: Made | None, kind: str, size: tuple[int, ...], at: float | None) -> Operand:
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel() or tensor.is_complex():
        return Operand(made, kind, size, None, None, None, 0, 0, 0, at)
    low, high = float(tensor.min()), float(tensor.max())
    zeros = int((tensor == 0).sum())
    return Operand(made, kind, size, low, high, float(tensor.abs().min()) if low < 0 else low, zeros, 0, 0, at)


def _value_at(tensor: Tensor, first: list[int] | None, shape: tuple[int, ...] | None) -> float | None:
    """The operand's value where the first bad result stands, if the shapes broadcast."""
    if first is None or shape is None or len(first) != len(shape) or tensor.layout is not torch.strided:
        return None
    try:
        return float(tensor.detach().expand(shape)[tuple(first)])
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
