"""Counters and sums, kept in floating tensors, that have stopped because their format cannot hold the next integer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.watching import measure, members, torch_private
from pytest_nanstab.watching.measure import PRECISION
from pytest_nanstab.watching.names import Names

_MOST_ELEMENTS = 4096
_CHANGES = 2  # so often it has grown: a counter, not a constant
_STILL = 3  # so many steps it has not: one may skip a step
_FIRST = 4  # steps at which everything is looked at
_MOST_ENTRIES = 64  # of a list or a dict that is an attribute
_TORCHS_OWN = ("_parameters", "_buffers", "_modules")
_AWAITED = 8  # steps in which something is added to it, or it has been forgotten
_FORGOTTEN = 8  # looks without a change, after which a tensor is looked at seldom


@dataclass(eq=False)
class Stopped:
    """A counter that seems to count no longer.

    Attributes:
        name: dotted name of the tensor.
        holder: where it is kept.
        steps: for how many steps it has been watched since.
        dtype: its format.
        value: where it stands.
        increment: what it last grew by.
        step: the last step at which it grew.
    """

    name: str
    dtype: torch.dtype
    value: float
    increment: float
    step: int
    holder: tuple[Any, Any]
    steps: int = 0

    def is_awaited(self) -> bool:
        """Whether a proof may still come: counted at each step."""
        self.steps += 1
        return self.steps < _AWAITED

    def tensor(self) -> Tensor | None:
        """The tensor as it is now."""
        return _held(*self.holder)


@dataclass
class _Trace:
    """The life of one tensor so far, element by element, as float64 on the CPU; `mark` is how it was last seen."""

    mark: tuple[Tensor, int]
    last: Tensor
    increment: Tensor
    changes: Tensor
    still: Tensor
    grew_at: int = 0
    idle: int = 0

    @property
    def grows(self) -> bool:
        """Whether it has grown lately."""
        return bool(self.grew_at) and self.idle < _FORGOTTEN

    def is_near(self, dtype: torch.dtype) -> bool:
        """Whether what it holds is large enough to be worth a look at every step."""
        return bool((self.last.abs() >= 2.0 ** (PRECISION[dtype] - 2)).any())


# Where a tensor is kept: the name for people, and the container with the key or index.
_Holder = tuple[str, Any, Any]


class Counters:
    """Follows small floating tensors that modules keep, and 16-bit scalars that optimizers keep, if they hold integers.

    Attributes:
        active: not empty while a step is to be looked at; a list, so that a hot path can hold it.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._holders: list[_Holder] = []
        self._traces: dict[str, _Trace] = {}
        self._dropped: set[str] = set()
        self._told: set[str] = set()
        self.active: list[str] = ["the first steps"]

    def look(self, step: int, optimizer: Any) -> list[Stopped]:
        """Look after a step's forward pass; those that seem to have stopped, each told once.

        Whether they have is proved by what the next step does: one may be held there on purpose.
        """
        everything = step <= _FIRST or step & (step - 1) == 0
        with torch_private.unseen():
            if everything:
                self._holders = list(self._candidates(optimizer))
            found = [self._follow(holder, step) for holder in self._holders if everything or self._is_due(holder)]
        self.active[:] = [name for name, trace in self._traces.items() if trace.grows and name not in self._told]
        if step < _FIRST:
            self.active.append("the first steps")
        return [stopped for stopped in found if stopped is not None]

    def _is_due(self, holder: _Holder) -> bool:
        name, store, key = holder
        trace, tensor = self._traces.get(name), _held(store, key)
        return trace is not None and trace.grows and tensor is not None and trace.is_near(tensor.dtype)

    def _candidates(self, optimizer: Any) -> Iterator[_Holder]:
        for root in self._names.roots():
            for path, part in members.named_modules(root):
                for store in (part._buffers, part._parameters, vars(part)):
                    for name, container, key in _tensors_of(store):
                        if _may_count(_held(container, key), PRECISION):
                            yield f"{path}.{name}".lstrip("."), container, key
        for parameter, state in list(optimizer.state.items()):
            for key, value in state.items() if isinstance(state, dict) else ():
                if _may_count(value, (torch.bfloat16, torch.float16)):
                    yield f"{self._names.label(optimizer, parameter)} {key}", state, key

    def _follow(self, holder: _Holder, step: int) -> Stopped | None:
        name, store, key = holder
        tensor = _held(store, key)
        values = None if tensor is None or name in self._dropped else measure.plain(tensor)
        if tensor is None or values is None or not _may_count(tensor, PRECISION):
            return None
        now = values.double().cpu().flatten()
        trace = self._traces.get(name)
        if not bool(torch.isfinite(now).all()) or bool((now != now.round()).any()):
            self._dropped.add(name)
            self._traces.pop(name, None)
            return None
        if trace is None or trace.last.shape != now.shape:
            nothing = torch.zeros_like(now)
            self._traces[name] = _Trace(_mark(tensor), now, nothing, nothing, nothing)
            return None
        written = not _is_same(trace.mark, tensor)  # else nobody has added to it
        _update(trace, now, step, written=written)
        trace.mark = _mark(tensor)
        return self._stopped(holder, trace, tensor.dtype)

    def _stopped(self, holder: _Holder, trace: _Trace, dtype: torch.dtype) -> Stopped | None:
        name, *place = holder
        if name in self._told:
            return None
        beyond = trace.last.abs() >= 2.0 ** PRECISION[dtype]
        swallowed = (trace.last + trace.increment).to(dtype).double() == trace.last
        stuck = beyond & swallowed & (trace.changes >= _CHANGES) & (trace.still >= _STILL)
        if not bool(stuck.any()):
            return None
        self._told.add(name)
        first = int(torch.nonzero(stuck)[0])
        value, increment = trace.last[first].item(), trace.increment[first].item()
        return Stopped(name, dtype, value, increment, trace.grew_at, (place[0], place[1]))

    def forget(self) -> None:
        """Let go of the user's objects."""
        self._holders.clear()
        self._traces.clear()


def _update(trace: _Trace, now: Tensor, step: int, *, written: bool) -> None:
    change = now - trace.last
    moved = change != 0
    # One that turns back was set anew.
    onward = (trace.changes == 0) | (torch.sign(change) == torch.sign(trace.increment))
    trace.increment = torch.where(moved, change, trace.increment)
    trace.changes = torch.where(moved, torch.where(onward, trace.changes + 1, 0), trace.changes)
    trace.still = torch.where(moved, 0, trace.still + int(written))
    trace.last = now
    if bool(moved.any()):
        trace.grew_at, trace.idle = step, 0
    else:
        trace.idle += 1


def _tensors_of(store: Mapping[Any, Any]) -> Iterator[_Holder]:
    """The tensors of a module's own attributes, and of the lists and dicts among them."""
    for key, value in list(store.items()):
        if isinstance(value, Tensor):
            yield str(key), store, key
        elif isinstance(value, (list, dict)) and str(key) not in _TORCHS_OWN and len(value) <= _MOST_ENTRIES:
            entries = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
            for inner, entry in entries:
                if isinstance(entry, Tensor):
                    yield f"{key}.{inner}", value, inner


def _held(container: Any, key: Any) -> Tensor | None:
    """The tensor that is kept there now, if one still is."""
    try:
        value = container[key]
    except (KeyError, IndexError):
        return None
    return value if isinstance(value, Tensor) else None


def _mark(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor, 0 if tensor.is_inference() else tensor._version


def _is_same(mark: tuple[Tensor, int], tensor: Tensor) -> bool:
    """Whether the tensor is the one that was marked, and nothing has written to it since."""
    return mark[0] is tensor and not tensor.is_inference() and mark[1] == tensor._version


def _may_count(value: Any, formats: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype in formats
        and value.layout is torch.strided
        and not value.is_nested
        and not value.requires_grad
        and value.grad_fn is None
        and 0 < value.numel() <= _MOST_ELEMENTS
        and measure.plain(value) is not None
    )
