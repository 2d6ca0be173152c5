"""Integers that a floating format cannot hold: additions that change nothing, running sums and ranges that repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_nanstab.attribution import operations
from pytest_nanstab.attribution.history import storage_key
from pytest_nanstab.attribution.places import Spot, place_of_call
from pytest_nanstab.watching import measure
from pytest_nanstab.watching.measure import PRECISION

_ADDITIONS = frozenset({"add", "sub", "index_add", "scatter_add", "index_put"})
_CAPS = frozenset({"clamp", "clamp_max", "minimum", "fmin", "remainder", "fmod", "hardtanh"})
_COPIES = frozenset({"clone", "to", "contiguous"})
_MOST_OF_A_SUM, _MOST = 1 << 12, 1 << 16  # elements: counters and sums are small, positions are not large
_GROWN = 2  # so often a sum has grown at its line before it stopped: a mask that swallows scores never has


@dataclass(eq=False)
class Lost:
    """An integer that was added and left no trace, or one that came out as another.

    Attributes:
        op: the operation.
        spot: the user's line.
        dtype: the format.
        value: the number that stayed as it was, or came out for another.
        addend: what should have been added to it.
        kind: "counter" for what outlives the pass, "sum" for what grows within it, "range" for positions.
    """

    op: str
    spot: Spot | None
    dtype: torch.dtype
    value: float
    addend: float
    kind: str


@dataclass(eq=False)
class _Sum:
    """What is known of a piece of memory that an addition has written: where, and how often each element has grown."""

    spot: Spot | None
    grown: Tensor


class LostIntegers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds them among the operations that run while it is on.

    An addition that loses its addend is no fault by itself (a mask of -1e9 swallows every score). It is one where the
    result is stored in what outlives the pass, or where a line goes on adding to its own result. What a bound holds at
    that very number is meant to stop there.

    Args:
        lasting: tensors that outlive the pass: buffers and attributes of modules.
        passes: whether sums, cumulated sums and ranges within the pass are looked at too.

    Attributes:
        failed: the error that ended the looking.
    """

    def __init__(self, lasting: Iterable[Tensor], *, passes: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lasting = {key for tensor in lasting if (key := _key(tensor)) is not None}
        self._passes = passes
        self._sums: dict[int, _Sum] = {}
        self._lost: dict[int, Lost] = {}  # by the memory that holds such a result
        self._ranges: set[int] = set()  # memory of whole positions
        self._kept: list[Tensor] = []  # memory that is used again would stand for two results
        self._found: dict[tuple[Spot | None, str], Lost] = {}
        self.failed: Exception | None = None

    def stored_in(self, tensor: Tensor) -> Lost | None:
        """The lost addition whose result a tensor holds now."""
        return self._lost.get(_key(tensor) or 0)

    def conclude(self, lasting: Iterable[Tensor]) -> list[Lost]:
        """What is meant to go on and cannot, each line once; `lasting` as it is after the pass."""
        for tensor in lasting:
            lost = self.stored_in(tensor)
            if lost is not None:
                self._add(lost)
        return list(self._found.values())

    def _add(self, lost: Lost) -> None:
        self._found.setdefault((lost.spot, lost.op), lost)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operations.describe(func).name
        is_sum = name in _ADDITIONS and (name != "index_put" or (len(args) > 3 and args[3]))  # else it overwrites
        summed = self._guarded(_before_and_exact, func, args, kwargs) if is_sum else None
        result = func(*args, **kwargs)
        self._guarded(self._look, name, args, kwargs, result, summed)
        return result

    def _guarded(self, look: Callable[..., Any], *args: Any) -> Any:
        """Look, and never let a tensor of an unknown kind break the user's step: what is not seen proves nothing."""
        if self.failed is not None:
            return None
        try:
            return look(*args)
        except Exception as error:  # noqa: BLE001 - kept
            self.failed = error
            return None

    def _look(self, name: str, args: Any, kwargs: Any, result: Any, summed: tuple[Tensor, Tensor] | None) -> None:
        if not isinstance(result, Tensor) or result.dtype not in PRECISION or not 0 < result.numel() <= _MOST:
            self._note_integers(name, args, result)
        elif summed is not None:
            self._added(name, *summed, _key(args[0]), result)
        elif name in _CAPS:
            self._capped(name, args, kwargs, result)
        elif name == "copy":
            self._copied(args[1], args[0])
        elif name in _COPIES:
            self._copied(args[0], result)
            self._cast(args[0], result)
        elif self._passes and name in ("cumsum", "arange"):
            self._ranged(name, args, result)

    # -- additions, and where their results go

    def _added(self, name: str, before: Tensor, exact: Tensor, key: int | None, result: Tensor) -> None:
        spot, of_result = place_of_call()[0].spot, _key(result)
        if key is None or of_result is None or before.shape != result.shape or exact.shape != result.shape:
            return
        earlier = self._sums.get(key)
        grown = result != before
        if earlier is not None and earlier.spot == spot and earlier.grown.shape == grown.shape:
            grown = grown.to(torch.int32) + earlier.grown
        self._kept.append(result)
        self._sums[of_result] = _Sum(spot, grown.to(torch.int32))
        self._lost.pop(of_result, None)
        where = _swallowed(before.double(), exact, result)
        if bool(where.any()):
            at = int(torch.nonzero(where.flatten())[0])
            value = before.flatten()[at].item()
            lost = Lost(name, spot, result.dtype, value, exact.flatten()[at].item() - value, "counter")
            self._lose(lost, key, of_result, int(self._sums[of_result].grown.flatten()[at]))

    def _lose(self, lost: Lost, key: int, of_result: int, grown: int) -> None:
        if key in self._lasting:
            self._lost[of_result] = lost  # a bound may still follow: what is stored in the end counts
        elif self._passes and grown >= _GROWN:
            lost.kind = "sum"
            self._add(lost)

    def _capped(self, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        """A bound: at the very number at which the count stopped it was meant to; beyond it changes nothing."""
        lost = self._lost.get(_key(args[0]) or 0)
        if lost is None:
            return
        if _upper_bound(name, args, kwargs) > abs(lost.value):
            self._copied(args[0], result)
        elif _key(result) == _key(args[0]):
            self._lost.pop(_key(args[0]) or 0)

    def _copied(self, source: Any, target: Tensor) -> None:
        lost = self._lost.get(_key(source) or 0) if isinstance(source, Tensor) else None
        key = _key(target)
        if lost is None or key is None:
            return
        self._kept.append(target)
        self._lost[key] = lost

    # -- positions

    def _note_integers(self, name: str, args: Any, result: Any) -> None:
        """Whole positions in an integer format, which a cast may lose."""
        if not self._passes or not isinstance(result, Tensor) or result.is_floating_point() or result.is_complex():
            return
        made = name in ("arange", "cumsum") and result.dtype is not torch.bool
        handed_on = bool(args) and isinstance(args[0], Tensor) and _key(args[0]) in self._ranges
        key = _key(result)
        if (made or (handed_on and name in ("add", "sub", "clone", "to", "repeat"))) and key is not None:
            self._ranges.add(key)
            self._kept.append(result)

    def _cast(self, given: Any, result: Tensor) -> None:
        if not isinstance(given, Tensor) or given.is_floating_point() or _key(given) not in self._ranges:
            return
        self._compare("to", given.double(), result)

    def _ranged(self, name: str, args: Any, result: Tensor) -> None:
        if name == "cumsum":
            exact = args[0].double()
            if _are_integers(exact) and bool((exact.abs() <= 1).all()):  # counting, as from a mask
                self._compare(name, exact.cumsum(args[1]), result)
        elif all(float(end).is_integer() for end in args if isinstance(end, (int, float))):
            exact = torch.arange(*(end for end in args if isinstance(end, (int, float))), dtype=torch.float64)
            self._compare(name, exact.to(result.device), result)

    def _compare(self, name: str, exact: Tensor, result: Tensor) -> None:
        if exact.shape != result.shape:
            return
        wrong = (result.double() - exact).abs() >= 1
        if bool(wrong.any()):
            value = result[wrong].flatten()[0].item()
            self._add(Lost(name, place_of_call()[0].spot, result.dtype, value, 1.0, "range"))


def _key(tensor: Any) -> int | None:
    return storage_key(tensor) if isinstance(tensor, Tensor) else None


def _may_sum(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.dtype in PRECISION
        and 0 < value.numel() <= _MOST_OF_A_SUM
        and measure.plain(value) is not None
    )


def _before_and_exact(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor] | None:
    """What is added to, and the result in float64; None for operands that are no small sum or cannot be widened."""
    if not _may_sum(args[0]):
        return None

    def widened(value: Any) -> Any:
        return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value

    before = args[0].detach().clone()
    try:
        others, named = pytree.tree_map(widened, (list(args[1:]), dict(kwargs)))
        result = func(before.double(), *others, **named)
    except Exception:  # noqa: BLE001 - operands of an unknown kind: nothing is said about their sum
        return None
    return (before, result) if isinstance(result, Tensor) and result.dtype is torch.float64 else None


def _swallowed(before: Tensor, exact: Tensor, result: Tensor) -> Tensor:
    """Where an integer has left an integer as it was, which counting by such integers can have reached."""
    plus = exact - before
    reach = 2.0 ** PRECISION[result.dtype]
    whole = (before == before.round()) & (exact == exact.round()) & torch.isfinite(exact) & (plus != 0)
    stays = (result.double() == before) & (before.abs() >= reach)
    return whole & stays & (before.abs() <= 2 * reach * plus.abs())


def _are_integers(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all()) and bool((values == values.round()).all())


def _upper_bound(name: str, args: Any, kwargs: Any) -> float:
    """The smallest number that a bound holds anything at; infinite for what bounds from below only."""
    at = 2 if name in ("clamp", "hardtanh") else 1
    bound = args[at] if len(args) > at else kwargs.get("max", kwargs.get("max_val"))
    if isinstance(bound, Tensor):
        return float(bound.detach().double().min()) if bound.numel() and not bound.is_complex() else torch.inf
    return float(bound) if isinstance(bound, (int, float)) else torch.inf


def lasting_tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """What modules keep from one pass to the next: buffers, and tensors that are plain attributes."""
    for module in modules:
        for part in module.modules():
            for value in (*part._buffers.values(), *vars(part).values()):
                if isinstance(value, Tensor) and not nn.parameter.is_lazy(value):
                    yield value
