"""Measurements of tensors: exact about NaN and Inf, and never overflowing on finite values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType, MemberDescriptorType, ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pytest_nanstab.watching import torch_private

# Every integer up to 2**precision has a number of its own; the next odd one has none (IEEE 754-2019, table 3.5).
PRECISION = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}
_USUAL = (Tensor, torch.nn.Parameter)
_MAX_OBJECTS = 1000
_MAX_CONTAINERS = 1_000_000  # a class can invent members without end
_NUMBERS_AND_TEXTS = (str, bytes, int, float)
_Members: TypeAlias = "list[tuple[str, Any]]"  # ".name" or "[index]", and what is there
_Way: TypeAlias = "tuple[_Way, str] | None"  # from a container back to where the walk began
_MAX_PLACES = 16
_PLACES = (("row", 0), ("column", -1))


@dataclass(frozen=True)
class Extent:
    """Smallest and largest value of a tensor; both NaN when it holds a NaN."""

    low: float
    high: float

    @property
    def has_nan(self) -> bool:
        """Whether there is a NaN."""
        return math.isnan(self.low)

    @property
    def finite(self) -> bool:
        """Whether there is neither NaN nor infinity."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high)) if not self.has_nan else math.nan


def tensors_in(obj: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a pytree (tuples, lists, mappings, dataclass-like objects) with their paths, however deep."""
    return _walked(obj, path, _members_of)


def all_tensors_in(obj: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The same, and those kept as attributes of any other object: batches come in classes of their own."""
    opened = 0

    def members(node: Any) -> _Members:
        nonlocal opened
        found = _members_of(node) if opened < _MAX_OBJECTS else []
        opened += bool(found and opened)  # within somebody's objects, which may lead anywhere
        if found or isinstance(node, (type, ModuleType, torch.nn.Module)) or opened >= _MAX_OBJECTS:
            return found
        own = _own(node)
        opened += bool(own)
        return _named(own)

    return _walked(obj, path, members)


def _walked(obj: Any, path: str, members: Callable[[Any], _Members]) -> Iterator[tuple[str, Tensor]]:
    """Depth first, in order, each container once: what holds itself has an end."""
    waiting: list[tuple[_Way, Any]] = [(None, obj)]
    seen: dict[int, Any] = {}
    while waiting and len(seen) <= _MAX_CONTAINERS:
        way, node = waiting.pop()
        if issubclass(type(node), Tensor):
            yield _path(path, way), node
        elif node is not None and not issubclass(type(node), _NUMBERS_AND_TEXTS) and id(node) not in seen:
            found = members(node)
            if found:
                seen[id(node)] = node  # kept alive: another object could get its identity
                waiting += [((way, part), value) for part, value in reversed(found)]


def _path(start: str, way: _Way) -> str:
    """The path of a tensor; made only for one, because a deep container's would be as long as it is deep."""
    parts = []
    while way is not None:
        way, part = way
        parts.append(part)
    path = "".join(reversed(parts))
    return start + path if start else path.removeprefix(".")


def _members_of(node: Any) -> _Members:
    """What a container holds; nothing of an object that cannot be read.

    Read past the methods of subclasses: those may compute a member when it is asked for, draw random numbers for it or
    give it away.
    """
    kind = type(node)
    try:
        if issubclass(kind, (list, tuple)):
            items = list.__iter__(node) if issubclass(kind, list) else tuple.__iter__(node)
            return [(f"[{index}]", value) for index, value in enumerate(items)]
        if issubclass(kind, dict):
            return _named(node)
        if issubclass(kind, Mapping):
            return _held_by(node)
        if hasattr(kind, "__dataclass_fields__"):
            return [(f".{name}", getattr(node, name, None)) for name in kind.__dataclass_fields__]
    except Exception:  # noqa: BLE001 - a class of the user's, whose methods may raise anything: it shows us nothing
        return []
    return []


def _named(members: dict[Any, Any]) -> _Members:
    return [(f".{key}", value) for key, value in dict.items(members)]


def _held_by(mapping: Any) -> _Members:
    """What a mapping of another kind keeps: its only dictionary (`UserDict`, `TensorDict`), else its attributes."""
    if type(mapping) is MappingProxyType:
        return _named(dict(mapping))
    own = _own(mapping)
    kept = [value for value in own.values() if issubclass(type(value), dict) and value]
    return _named(kept[0] if len(kept) == 1 else own)


def _own(value: Any) -> dict[str, Any]:
    """The attributes that an object keeps, in its dictionary or in slots, read past its own `__getattr__`."""
    with suppress(AttributeError):
        attributes = object.__getattribute__(value, "__dict__")
        if isinstance(attributes, dict):
            return attributes
    kept: dict[str, Any] = {}
    for name, member in ((name, member) for base in type(value).__mro__ for name, member in vars(base).items()):
        if type(member) is MemberDescriptorType:
            with suppress(AttributeError):  # never set
                kept.setdefault(name, member.__get__(value))
    return kept


def plain(tensor: Tensor) -> Tensor | None:
    """A dense, real view of the tensor's numbers without gradients, or None when it has none to look at.

    None for integers, bools, meta tensors, functorch's wrappers, whatever a CUDA graph is capturing, weights whose
    memory was given back (`fully_shard`), and subclasses that keep their numbers elsewhere (fake and quantised ones).
    Sparse and nested tensors give their values, distributed ones the local shard, complex ones their real and imaginary
    parts.
    """
    if type(tensor) in _USUAL:
        return _plain(tensor)
    with torch_private.past_subclass(tensor):
        return _plain(tensor)


def _plain(tensor: Tensor) -> Tensor | None:
    if is_lazy(tensor) or torch_private.unreadable(tensor):
        return None
    kind = type(tensor)
    if kind not in _USUAL:
        if hasattr(tensor, "to_local"):
            return plain(tensor.to_local())
        if tensor.is_nested:
            return plain(tensor.values())
        if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
            return None
        tensor = tensor.as_subclass(Tensor)
    tensor = _dense(tensor.detach())
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.untyped_storage().nbytes() == 0:
        return None
    return tensor if tensor.element_size() > 1 else tensor.float()


def _dense(tensor: Tensor) -> Tensor:
    if tensor.layout is torch.sparse_coo:
        return tensor.coalesce().values()
    if tensor.is_mkldnn:
        return tensor.to_dense()
    return tensor.values() if tensor.is_nested or tensor.layout is not torch.strided else tensor


def extent(tensor: Tensor) -> Extent | None:
    """Smallest and largest value in one pass without a temporary; None when there are no floating values.

    NaN and both infinities show in the result, and nothing can overflow (`torch.aminmax` passes NaN on).
    """
    if torch_private.modes_active():
        with torch_private.unseen():
            return _extent(tensor)
    return _extent(tensor)


def _extent(tensor: Tensor) -> Extent | None:
    values = plain(tensor)
    if values is None:
        return None
    low, high = torch.aminmax(values)
    if values.is_cpu:
        return Extent(low.item(), high.item())
    return Extent(*torch.stack((low, high)).tolist())  # one wait for the device, not two


def has_nan(obj: Any) -> str | None:
    """The path of the first tensor of a pytree that holds a NaN, or None; the empty path is the object itself."""
    if type(obj) is Tensor and not torch_private.modes_active() and _ordinary(obj):
        # The one common case without detours: a NaN shows in the minimum.
        return "" if math.isnan(torch.aminmax(obj.detach())[0].item()) else None
    for path, tensor in tensors_in(obj):
        seen = extent(tensor)
        if seen is not None and seen.has_nan:
            return path
    return None


def _ordinary(tensor: Tensor) -> bool:
    return (
        tensor.is_cpu
        and tensor.is_floating_point()
        and tensor.layout is torch.strided
        and tensor.numel() > 0
        and tensor.element_size() > 1
        and not tensor.is_nested
        and not torch_private.is_functorch_wrapped(tensor)
    )


def exact_norm(gradients: Sequence[Tensor]) -> float | None:
    """L2 norm in double precision, each tensor scaled by its largest value first; None when nothing can be read."""
    total, unread = 0.0, 0
    for gradient in gradients:
        values = plain(gradient)
        seen = None if values is None else _extent(values)
        if values is None or seen is None:
            with torch_private.past_subclass(gradient):
                unread += gradient.numel() > 0
            continue
        if not seen.finite:
            return math.nan if seen.has_nan else math.inf
        if seen.largest > 0:
            total = math.hypot(total, seen.largest * torch.linalg.vector_norm(values.double() / seen.largest).item())
    return None if unread and unread == len(gradients) else total


def nonfinite_facts(tensor: Tensor) -> dict[str, Any]:
    """What a finding tells about a bad tensor: dtype, shape, counts, first bad index, range of the finite values."""
    with torch_private.unseen():
        values = plain(tensor)
        if values is None:
            return {}
        bad, undefined = ~torch.isfinite(values), torch.isnan(values)
        good = values[~bad]
        if tensor.is_complex():  # a number is bad where one of its parts is
            bad, undefined = bad.any(dim=-1), undefined.any(dim=-1)
        nan = int(undefined.sum())
        facts: dict[str, Any] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "count": int(bad.sum()),
            "of": bad.numel(),
            "nan": nan,
            "inf": int(bad.sum()) - nan,
        }
        if facts["count"]:
            facts["first_index"] = torch.nonzero(bad)[0].tolist()
        if facts["inf"] and not tensor.is_complex():
            facts["negative_inf"] = int(torch.isneginf(values).sum())
        if good.numel():
            facts["range"] = [good.min().item(), good.max().item()]
        return facts


def bad_along(tensor: Tensor, dim: int) -> tuple[list[int], int]:
    """The indices along a dimension at which something is not finite, at most a few, and how many there are.

    None where it cannot be told.
    """
    with torch_private.unseen():
        values = plain(tensor)
        if values is None:
            return [], 0
        bad = ~torch.isfinite(values)
        bad = bad.any(dim=-1) if tensor.is_complex() else bad
        if bad.dim() == 0 or bad.shape != tensor.shape:  # the values of a sparse tensor have lost their places
            return [], 0
        along = bad.movedim(dim, 0).reshape(bad.shape[dim], -1).any(dim=1)
        indices: list[int] = torch.nonzero(along).flatten()[:_MAX_PLACES].tolist()
        return indices, int(along.sum())


def places_in_data(tensor: Tensor) -> dict[str, list[int] | int]:
    """The rows (first index) and columns (last index) of what is bad in data; one dimension has rows only.

    "row_count" and "column_count" say how many there are, where that is more than are listed.
    """
    found: dict[str, list[int] | int] = {}
    for name, dim in _PLACES[: tensor.dim()]:
        indices, count = bad_along(tensor, dim)
        found |= {f"{name}s": indices} if indices else {}
        found |= {f"{name}_count": count} if count > len(indices) else {}
    return found
