"""Sees every operation of a few training steps, and knows for each bad value where it came from.

A dispatch mode below autograd: it sees the forward pass, the backward pass, the optimizer's arithmetic and anything
done under `no_grad`, inside modules and outside. Results are looked at one by one, operands only when a result is bad.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_nanstab.attribution import looking, operations
from pytest_nanstab.attribution.history import Bad, Kind, Ledger, Made, distinct
from pytest_nanstab.attribution.operations import Operation
from pytest_nanstab.attribution.places import Place, called_at, place_of_call
from pytest_nanstab.attribution.variables import name_of
from pytest_nanstab.ranks.sharding import any_sharded, is_sharded
from pytest_nanstab.watching import torch_private

_BORN = 64


@dataclass(slots=True, eq=False)
class _Call:
    """One operation as it was called, or one element of an operation on lists.

    `before` holds what was in the arguments it writes to: whether that was bad, and a copy of it.
    """

    func: Any
    about: Operation
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    before: dict[int, tuple[bool, Tensor]]
    inputs: list[Tensor]
    behind: list[Made | None]

    def value(self, index: int) -> Tensor:
        """An input as it was before the call."""
        kept = self.before.get(id(self.inputs[index]))
        return self.inputs[index] if kept is None else kept[1]

    def was_bad(self, index: int) -> bool:
        """Whether an input was bad before the call."""
        kept = self.before.get(id(self.inputs[index]))
        return looking.is_bad(self.inputs[index]) if kept is None else kept[0]


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Traces operations while it is on.

    Attributes:
        step: the training step that operations belong to now, from 1.
        modules: the modules whose forward is running, the innermost last.
        optimizer: the optimizer whose step is running.
        failed: what went wrong in here, if anything did: it then traces no more.
        born: the last records of bad results of good operands that the program did not mean to be so.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.step = 1
        self.modules: list[nn.Module] = []
        self.optimizer: Any = None
        self.failed: str | None = None
        self.ledger = Ledger()
        self.born: deque[Made] = deque(maxlen=_BORN)
        self._count = 0
        self._forward: dict[int, Made] = {}
        self._base = torch_private.next_sequence_number()
        self.ledger.new_step()

    # -- what the rest of the house asks -----------------------------------------------------------------------------

    def behind(self, tensor: Tensor) -> Made | None:
        """The record behind a tensor that is bad now; None for a finite one."""
        with torch_private.unseen():
            return self._behind(tensor, self.ledger.of(tensor), None, None) if looking.is_bad(tensor) else None

    def next_step(self, step: int) -> None:
        """Operations belong to another training step from now on."""
        if step != self.step:
            self.step = step
            self.ledger.new_step()
            self._forward = {key: made for key, made in self._forward.items() if made.step >= step - 1}

    def forget(self) -> None:
        """Drop every reference to the user's objects."""
        self.ledger.clear()
        self.born.clear()
        self._forward.clear()
        self.modules.clear()
        self.optimizer = None

    # -- one operation -----------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        about = operations.describe(func)
        if self.failed is not None or about.ignored or (about.view and about.aten != "lift_fresh"):
            return func(*args, **kwargs)
        try:
            call = self._call(func, about, args, kwargs)
        except Exception as error:  # noqa: BLE001 - kept in `failed` and told in the finding
            self.failed = f"{type(error).__name__}: {error}"
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        try:
            self._look(call, result)
        except Exception as error:  # noqa: BLE001
            self.failed = f"{type(error).__name__}: {error}"
        return result

    def _call(self, func: Any, about: Operation, args: Any, kwargs: Any) -> _Call:
        written = {id(tensor): tensor for tensor in looking.tensors_of(_written(about, args, kwargs))}
        before: dict[int, tuple[bool, Tensor]] = {}
        if about.writes and not about.overwrites:
            before = {key: (looking.is_bad(t), t.detach().clone()) for key, t in written.items()}
        given = _distinct_tensors([args, kwargs.values()])
        inputs = [tensor for tensor in given if not (about.overwrites and id(tensor) in written)]
        return _Call(func, about, args, kwargs, before, inputs, [self.ledger.of(tensor) for tensor in inputs])

    def _look(self, call: _Call, result: Any) -> None:
        about = call.about
        written = _written(about, call.args, call.kwargs)
        if about.foreach and written:
            for part, outputs in _elements(call, written):
                self._look_at(part, outputs)
            return
        self._look_at(call, _distinct_tensors([result, written]))

    def _look_at(self, call: _Call, outputs: list[Tensor]) -> None:
        if not outputs:
            return
        self._count += 1
        left = [self.ledger.of(tensor) for tensor in outputs] if call.about.writes else []
        made, frame = self._record(call, outputs[0])
        for tensor in outputs:
            self.ledger.note(tensor, made)
        bad = [] if call.about.empty else [tensor for tensor in outputs if looking.is_bad(tensor)]
        if not bad:
            self._keep_what_is_left(outputs, left)
            return
        made.bad = self._explain(call, bad[0], made.place, frame)
        if made.bad.kind == "born" and not made.bad.intended:
            self.born.append(made)
        if not (made.place.in_module or made.place.functional or made.place.in_backward):
            made.bad.called = called_at(frame)
        good = replace(made, bad=None)  # of several results only the bad ones have a bad record behind them
        for tensor in outputs:
            if not any(tensor is other for other in bad):
                self.ledger.note(tensor, good)

    def _keep_what_is_left(self, outputs: list[Tensor], left: list[Made | None]) -> None:
        """A finite part written into memory whose other parts are bad leaves those as they were."""
        for tensor, earlier in zip(outputs, left, strict=False):
            if earlier is not None and earlier.bad is not None and _is_part(tensor):
                self.ledger.note(tensor, earlier)

    def _record(self, call: _Call, output: Tensor) -> tuple[Made, FrameType | None]:
        place, frame = place_of_call()
        node = torch_private.current_node()
        made = Made(
            number=self._count,
            step=self.step,
            op="tensor" if call.about.aten == "lift_fresh" else call.about.name,
            aten=call.about.aten,
            phase=self._phase(node, in_backward=place.in_backward),
            place=place,
            module=self.modules[-1] if self.modules else None,
            operands=distinct([made or self._given(t) for t, made in zip(call.inputs, call.behind, strict=True)]),
            numbers=looking.numbers_of([*call.args, *call.kwargs.values()]),
            dtype=str(output.dtype).removeprefix("torch."),
            shape=tuple(output.shape),
            by=self.optimizer,
        )
        if node is not None:
            made.node = node.name()
            made.derivative_of = self._forward.get(node._sequence_nr())
        # An operation that autograd will differentiate has just got its node: the latest number is that node's.
        number = torch_private.next_sequence_number() - 1
        if number >= self._base:
            self._forward.setdefault(number, made)
        return made, frame

    def _given(self, tensor: Tensor) -> Made | None:
        """A record for integers and truth values that nothing traced has made: what is added up may be a count."""
        if tensor.is_floating_point() or tensor.is_complex():
            return None
        kind = str(tensor.dtype).removeprefix("torch.")
        return Made(self._count, self.step, "", dtype=kind, shape=tuple(tensor.shape))

    def _phase(self, node: Any, *, in_backward: bool) -> str:
        if node is not None:
            return "backward" if in_backward or not torch.is_grad_enabled() else "forward"
        if self.optimizer is not None and not torch.is_grad_enabled():
            return "optimizer"
        return "forward" if torch.is_grad_enabled() else "eval"

    # -- a bad result ------------------------------------------------------------------------------------------------

    def _explain(self, call: _Call, output: Tensor, place: Place, frame: FrameType | None) -> Bad:
        tainted = [made for made in call.behind if made is not None and made.bad is not None and made.bad.nan]
        if tainted and looking.has_nan(output):
            # A NaN that is handed on needs no second look: whatever else is wrong here came later.
            return Bad("carried", True, {}, causes=distinct(tainted))
        facts = looking.facts_of(output)
        if call.about.aten == "lift_fresh":  # numbers written into the program
            nan = facts.get("nan", 1) > 0
            return Bad("born", nan, facts, intended=_is_sentinel(facts), rows=looking.bad_rows(output))
        suspects = [index for index in range(len(call.inputs)) if call.was_bad(index)]
        kind, causing = _why(call, suspects, output, facts)
        first, shape = facts.get("first_index"), tuple(output.shape)
        return Bad(
            kind=kind,
            nan=facts.get("nan", 1) > 0,
            facts=facts,
            causes=distinct(
                [self._behind(call.value(i), call.behind[i], place, frame, call.inputs[i]) for i in causing]
            ),
            operands=tuple(
                looking.operand(call.value(i), call.behind[i], first, shape) for i in range(len(call.inputs))
            ),
            intended=kind == "born" and not facts.get("nan") and _states_infinity(call),
            rows=looking.bad_rows(output),
        )

    def _behind(
        self,
        tensor: Tensor,
        made: Made | None,
        place: Place | None,
        frame: FrameType | None,
        given: Tensor | None = None,
    ) -> Made:
        """The bad record behind a bad tensor; `given` is the argument that held it, where `tensor` is a copy."""
        if made is not None and made.bad is not None:
            return made
        facts, rows = looking.facts_of(tensor), looking.bad_rows(tensor)
        nan = facts.get("nan", 1) > 0
        if made is not None and made.aten in operations.EMPTY:
            made.bad = Bad("born", nan, facts, rows=rows)
            return made
        owner = tensor if given is None else given
        bad = Bad("outside", nan, facts, tensor=owner, name=name_of(frame, owner), rows=rows)
        outside = Made(self._count, self.step, "", place=place or Place(None, None, None, None, False), bad=bad)
        outside.dtype, outside.shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if made is None:
            self.ledger.note(owner, outside)
        return outside


def _why(call: _Call, suspects: list[int], output: Tensor, facts: dict[str, Any]) -> tuple[Kind, list[int]]:
    """How a result became bad, and which bad inputs made it so.

    The operation is repeated with ordinary numbers in place of bad ones: what is still bad then was born in it, and an
    input without which nothing changes is not to blame.
    """
    if not suspects:
        return "born", []
    causing = list(suspects)
    # On distributed tensors it may be a collective, which other ranks would not join.
    if call.func is not None and not call.about.random and not any_sharded(call.inputs):
        word = "nan" if facts.get("nan") else "count"
        own = _bad_without(call, suspects, output, word)
        if len(suspects) > 1 or own:
            alone = [_bad_without(call, [j for j in suspects if j != i], output, word) for i in suspects]
            causing = [i for i, count in zip(suspects, alone, strict=True) if count > own]
            if own == facts.get(word) == output.numel():  # nothing to count: are the bad values enough by themselves?
                causing = _enough_alone(call, suspects, output, word)
            causing = causing or ([] if own else list(suspects))
        if own:
            return "born", causing
    had_nan = any(_has_nan(call.value(index)) for index in causing)
    return ("carried" if had_nan or not facts.get("nan") else "turned"), causing


def _bad_without(call: _Call, replaced: Iterable[int], output: Tensor, word: str) -> int:
    """How many bad values ("count", or only "nan") the result has when these inputs hold ordinary numbers."""
    return _bad_with(call, {id(call.inputs[i]): looking.ordinary(call.value(i)) for i in replaced}, output, word)


def _enough_alone(call: _Call, suspects: list[int], output: Tensor, word: str) -> list[int]:
    """The bad inputs whose bad values alone, among ordinary numbers, spoil the result as well."""
    if _bad_with(call, _tame(call), output, word):
        return []  # whatever it is given: an average of nothing
    return [i for i in suspects if _bad_with(call, _tame(call, keep=i), output, word)]


def _tame(call: _Call, keep: int | None = None) -> dict[int, Tensor]:
    """Ordinary numbers for every floating input; of the one to keep, its bad values stay."""
    swap = {}
    for index, tensor in enumerate(call.inputs):
        if tensor.is_floating_point():
            values = call.value(index).detach()
            ordinary = looking.ordinary(torch.full_like(values, math.nan))
            swap[id(tensor)] = torch.where(torch.isfinite(values), ordinary, values) if index == keep else ordinary
    return swap


def _bad_with(call: _Call, swap: dict[int, Tensor], output: Tensor, word: str) -> int:
    """How many bad values the result has when these tensors take the place of inputs, by their identity."""
    for tensor in looking.tensors_of(_written(call.about, call.args, call.kwargs)):
        # What it writes to is the user's: the repetition gets a copy of its own.
        kept = call.before.get(id(tensor))
        swap.setdefault(id(tensor), (tensor if kept is None else kept[1]).detach().clone())

    def other(leaf: Any) -> Any:
        return swap.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

    args, kwargs = pytree.tree_map(other, (call.args, call.kwargs))
    with torch.no_grad():
        result = call.func(*args, **kwargs)
    written = _written(call.about, args, kwargs)
    for tensor in _distinct_tensors([result, written]):
        if tensor.shape == output.shape and tensor.dtype == output.dtype:
            return int(looking.facts_of(tensor).get(word, 0))
    return 0


def _has_nan(tensor: Tensor) -> bool:
    return bool(looking.facts_of(tensor).get("nan", 0))


def _states_infinity(call: _Call) -> bool:
    """Whether an infinity is written into the call: a mask constant, a sentinel, or a factory's fill value."""
    numbers = looking.numbers_of([*call.args, *call.kwargs.values()])
    flat = [n for number in numbers for n in (number if isinstance(number, (list, tuple)) else [number])]
    return any(isinstance(number, float) and math.isinf(number) for number in flat)


def _is_sentinel(facts: dict[str, Any]) -> bool:
    """Whether numbers written into the program are meant: infinities only, or zeros and infinities as in a mask."""
    return not facts.get("nan") and facts.get("range", [0, 0]) == [0, 0]


def _written(about: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments an operation writes to."""
    found = []
    for where in about.writes:
        if isinstance(where, str):
            found.append(kwargs.get(where))
        elif where < len(args):
            found.append(args[where])
    return [value for value in found if value is not None]


def _distinct_tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values, each once: the same argument may be given twice."""
    return list({id(tensor): tensor for value in values for tensor in looking.tensors_of(_as_list(value))}.values())


def _as_list(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return value
    return [value] if value is None or isinstance(value, Tensor) else list(value) if hasattr(value, "__iter__") else []


def _elements(call: _Call, written: Sequence[Any]) -> Iterable[tuple[_Call, list[Tensor]]]:
    """An operation on lists of tensors, element by element: each with what it has written to."""
    lists = [value for value in call.args if isinstance(value, (list, tuple)) and _holds_tensors(value)]
    targets = [value for value in written if isinstance(value, (list, tuple))]
    others = [value for value in call.args if not isinstance(value, (list, tuple))]
    known = {id(tensor): made for tensor, made in zip(call.inputs, call.behind, strict=True)}
    for index in range(max((len(value) for value in targets), default=0)):
        outputs = [value[index] for value in targets if index < len(value)]
        row = tuple(value[index] for value in lists if index < len(value)) + tuple(others)
        inputs = _distinct_tensors([row])
        behind = [known.get(id(tensor)) for tensor in inputs]
        yield _Call(None, call.about, row, {}, call.before, inputs, behind), outputs


def _holds_tensors(values: Sequence[Any]) -> bool:
    return next(looking.tensors_of(values), None) is not None


def _is_part(tensor: Tensor) -> bool:
    """Whether a tensor is only a part of the memory it lives in."""
    if tensor.layout is not torch.strided or is_sharded(tensor):
        return False
    return tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes()
