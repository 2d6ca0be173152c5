"""Integers that a floating format cannot hold: additions that change nothing, running sums and ranges that repeat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_nanstab.attribution import operations
from pytest_nanstab.attribution.history import storage_key
from pytest_nanstab.attribution.places import Spot, place_of_call
from pytest_nanstab.watching import measure
from pytest_nanstab.watching.measure import PRECISION

_ADDITIONS = ("add", "sub")
_CAPS = frozenset({"clamp", "clamp_max", "minimum", "fmin", "remainder", "fmod", "hardtanh"})
_MOST_OF_A_SUM, _MOST = 1 << 12, 1 << 16  # elements: counters and sums are small, positions are not large


@dataclass(eq=False)
class Lost:
    """An integer that was added and left no trace, or one that came out as another.

    Attributes:
        op: the operation.
        spot: the user's line.
        dtype: the format.
        value: the number that stayed as it was, or came out twice.
        addend: what should have been added to it.
        key: the memory that holds the result.
        kind: "counter" for memory that outlives the pass, "sum" for one that grows within it, "range" for positions.
        capped: the result has gone through a clamp, so that it is meant to stop somewhere.
    """

    op: str
    spot: Spot | None
    dtype: torch.dtype
    value: float
    addend: float
    key: int | None
    kind: str
    capped: bool = False


class LostIntegers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds them among the operations that run while it is on.

    A sum that loses an addend is no fault by itself (a mask of -1e9 swallows every score): only counters that outlive
    the pass, sums that grow at one line, cumulated sums and ranges count.

    Args:
        lasting: tensors that outlive the pass: buffers and attributes of modules.
    """

    def __init__(self, lasting: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lasting = {storage_key(tensor) for tensor in lasting} - {None}
        self._sums: dict[int | None, Spot | None] = {}  # where the sum in a piece of memory was made
        self._kept: list[Tensor] = []
        self._found: list[Lost] = []

    @property
    def found(self) -> list[Lost]:
        """What is meant to go on and cannot, each line once."""
        unique: dict[tuple[Spot | None, str], Lost] = {}
        for lost in self._found:
            if not lost.capped:
                unique.setdefault((lost.spot, lost.op), lost)
        return list(unique.values())

    @property
    def capped(self) -> list[Lost]:
        """What is lost, and meant to stop there."""
        return [lost for lost in self._found if lost.capped]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operations.describe(func).name
        before = args[0].detach().clone() if name in _ADDITIONS and _may_sum(*args[:2]) else None
        key = storage_key(args[0]) if before is not None else None
        result = func(*args, **kwargs)
        if name in _CAPS:
            self._cap(args)
        if isinstance(result, Tensor) and result.dtype in PRECISION and 0 < result.numel() <= _MOST:
            if before is not None:
                plus = torch.as_tensor(args[1], dtype=torch.float64, device=result.device) * kwargs.get("alpha", 1)
                self._added(name, (before, key), -plus if name == "sub" else plus, result)
            elif name == "cumsum":
                self._cumulated(args[0], args[1], result)
            elif name == "arange":
                self._ranged(result)
        return result

    def _cap(self, args: Any) -> None:
        keys = {storage_key(tensor) for _, tensor in measure.tensors_in(args)}
        for lost in self._found:
            lost.capped |= lost.key in keys

    def _added(self, name: str, operand: tuple[Tensor, int | None], plus: Tensor, result: Tensor) -> None:
        before, key = operand
        spot = place_of_call()[0].spot
        grows = key in self._sums and self._sums[key] == spot
        self._kept.append(result)  # memory that is used again would stand for two sums
        self._sums[storage_key(result)] = spot
        if not (grows or key in self._lasting) or before.shape != result.shape:
            return
        plus = plus.expand_as(result)
        where = _lost(before.double(), plus, result)
        if where.any():
            value, missing = before[where].flatten()[0].item(), plus[where].flatten()[0].item()
            kind = "counter" if key in self._lasting else "sum"
            self._found.append(Lost(name, spot, result.dtype, value, missing, storage_key(result), kind))

    def _cumulated(self, given: Tensor, dim: int, result: Tensor) -> None:
        exact = given.double()
        if not _are_integers(exact):
            return
        wrong = (result.double() - exact.cumsum(dim)).abs() >= 1
        if wrong.any():
            value = result[wrong].flatten()[0].item()
            self._found.append(Lost("cumsum", place_of_call()[0].spot, result.dtype, value, 1.0, None, "range"))

    def _ranged(self, result: Tensor) -> None:
        values = result.double()
        twice = values[1:] == values[:-1]
        if _are_integers(values) and twice.any():
            value = values[1:][twice][0].item()
            self._found.append(Lost("arange", place_of_call()[0].spot, result.dtype, value, 1.0, None, "range"))


def _may_sum(value: Any, addend: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype in PRECISION
        and 0 < value.numel() <= _MOST_OF_A_SUM
        and measure.plain(value) is not None
        and (not isinstance(addend, Tensor) or addend.layout is torch.strided)
    )


def _lost(before: Tensor, plus: Tensor, result: Tensor) -> Tensor:
    """Where an integer that was not 0 has left an integer as it was that is too large for it."""
    whole = (before == before.round()) & (plus == plus.round()) & (plus != 0)
    return whole & (result.double() == before) & (before.abs() >= 2.0 ** PRECISION[result.dtype])


def _are_integers(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all()) and bool((values == values.round()).all())


def lasting_tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """What modules keep from one pass to the next: buffers, and tensors that are plain attributes."""
    for module in modules:
        for part in module.modules():
            for value in (*part._buffers.values(), *vars(part).values()):
                if isinstance(value, Tensor) and not nn.parameter.is_lazy(value):
                    yield value
