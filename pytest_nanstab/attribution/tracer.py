"""Sees every operation of a few training steps, and knows for each bad value where it came from.

A dispatch mode below autograd: it sees the forward pass, the backward pass, the optimizer's arithmetic and anything
done under `no_grad`, inside modules and outside. Results are looked at one by one, operands only when a result is bad.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_nanstab.attribution import looking, operations
from pytest_nanstab.attribution.calls import (
    Call,
    distinct_tensors,
    elements_of,
    is_sentinel,
    states_infinity,
    why,
    written_by,
)
from pytest_nanstab.attribution.history import Bad, Kind, Ledger, Made, Operand, Parts, distinct, memory_of
from pytest_nanstab.attribution.numpy_errors import NumpyErrors
from pytest_nanstab.attribution.operations import Operation
from pytest_nanstab.attribution.parts import Share, Source, bad_values, can_tell, shares_of
from pytest_nanstab.attribution.places import Place, called_at, place_of_call
from pytest_nanstab.attribution.variables import name_of
from pytest_nanstab.ranks.sharding import is_sharded
from pytest_nanstab.watching import torch_private

_BORN = 64


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Traces operations while it is on.

    Attributes:
        step: the training step that operations belong to now, from 1.
        modules: the modules whose forward is running, the innermost last.
        optimizer: the optimizer whose step is running.
        failed: what went wrong in here, if anything did: it then traces no more.
        numpy: what numpy complained of.
        born: the last records of bad results of good operands that the program did not mean to be so.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.step = 1
        self.modules: list[nn.Module] = []
        self.optimizer: Any = None
        self.failed: str | None = None
        self.ledger = Ledger()
        self.numpy = NumpyErrors()
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
            self.step = self.numpy.step = step
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

    def _call(self, func: Any, about: Operation, args: Any, kwargs: Any) -> Call:
        written = {id(tensor): tensor for tensor in looking.tensors_of(written_by(about, args, kwargs))}
        before: dict[int, tuple[bool, Tensor]] = {}
        if about.writes and not about.overwrites:
            before = {key: (looking.is_bad(t), t.detach().clone()) for key, t in written.items()}
        given = distinct_tensors([args, kwargs.values()])
        inputs = [tensor for tensor in given if not (about.overwrites and id(tensor) in written)]
        behind = [self.ledger.of(tensor) for tensor in inputs]
        return Call(func, about, args, kwargs, before, inputs, behind, [self.ledger.parts(t) for t in inputs])

    def _look(self, call: Call, result: Any) -> None:
        about = call.about
        written = written_by(about, call.args, call.kwargs)
        if about.foreach and written:
            for part, outputs in elements_of(call, written):
                self._look_at(part, outputs)
            return
        self._look_at(call, distinct_tensors([result, written]))

    def _look_at(self, call: Call, outputs: list[Tensor]) -> None:
        if not outputs:
            return
        self._count += 1
        left = [self.ledger.whole(tensor) for tensor in outputs] if call.about.writes else []
        made, frame = self._record(call, outputs[0])
        for tensor in outputs:
            self.ledger.note(tensor, made)
        bad = [] if call.about.empty else [tensor for tensor in outputs if looking.is_bad(tensor)]
        if bad:
            self._explain(call, made, bad[0], frame)
            good = replace(made, bad=None)  # of several results only the bad ones have a bad record behind them
            for tensor in outputs:
                if not any(tensor is other for other in bad):
                    self.ledger.note(tensor, good)
        self._keep_what_is_left(outputs, left, made)

    def _keep_what_is_left(self, outputs: list[Tensor], left: list[tuple[Made | None, Parts]], made: Made) -> None:
        """A part written into memory whose other parts are bad leaves those as they were."""
        for tensor, (earlier, parts) in zip(outputs, left, strict=False):
            if earlier is None or earlier.bad is None or not _is_part(tensor):
                continue
            around = parts or ((earlier, bad_values(memory_of(tensor))),)
            now = self.ledger.parts(tensor) or ([(made, bad_values(tensor))] if looking.is_bad(tensor) else [])
            self.ledger.note(tensor, earlier if not now else made)
            self.ledger.divide(tensor, now, around)

    def _record(self, call: Call, output: Tensor) -> tuple[Made, FrameType | None]:
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

    def _explain(self, call: Call, made: Made, output: Tensor, frame: FrameType | None) -> None:
        """Give a record its bad result: where that came from, value by value if it came from several places."""
        inside = made.place.in_module or made.place.functional or made.place.in_backward
        called = None if inside else called_at(frame)
        shares = self._shares(call, output, made.place, frame)
        born = made
        if len(shares) > 1:
            records = [replace(made, bad=self._of_share(call, output, share, called)) for share in shares]
            parts = [(record, share.where) for record, share in zip(records, shares, strict=True)]
            made.bad = Bad("carried", looking.has_nan(output), {}, causes=tuple(records))
            self.ledger.divide(output, parts)
            born = records[0]
        elif shares:
            made.bad = self._of_share(call, output, shares[0], called)
        else:
            made.bad = self._of_one_origin(call, output, made.place, frame)
            made.bad.called = called
        if born.bad is not None and born.bad.kind == "born" and not born.bad.intended:
            self.born.append(born)

    def _shares(self, call: Call, output: Tensor, place: Place, frame: FrameType | None) -> list[Share]:
        """The bad values by their origin; none where all of them have one, or they cannot be told apart."""
        if not can_tell(call, output) or call.about.aten == "lift_fresh" or not self.ledger.affords(output):
            return []
        sources = []
        for index, parts in enumerate(call.parts or [[]] * len(call.inputs)):
            if call.was_bad(index):
                value = call.value(index)
                whole = [] if parts else [self._behind(value, call.behind[index], place, frame, call.inputs[index])]
                sources += [Source(index, made, where) for made, where in parts]
                sources += [Source(index, made, bad_values(value)) for made in whole]
        return shares_of(call, output, sources) if sources else []

    def _of_share(self, call: Call, output: Tensor, share: Share, called: str | None) -> Bad:
        """What is bad in some of a result's values, and why."""
        only = torch.where(share.where | torch.isfinite(output), output, 0.5).detach()
        facts = looking.facts_of(only)
        first, shape, nan = facts.get("first_index"), tuple(output.shape), facts.get("nan", 1) > 0
        kind: Kind = "born"
        if share.causes:
            kind = "carried" if not nan or any(made.bad_nan for made in share.causes) else "turned"
        return Bad(
            kind=kind,
            nan=nan,
            facts=facts,
            causes=distinct(share.causes),
            operands=self._operands(call, first, shape),
            intended=kind == "born" and not nan and states_infinity(call),
            rows=looking.bad_rows(only),
            called=called,
        )

    def _of_one_origin(self, call: Call, output: Tensor, place: Place, frame: FrameType | None) -> Bad:
        tainted = [made for made in call.behind if made is not None and made.bad is not None and made.bad.nan]
        if tainted and looking.has_nan(output):
            # A NaN that is handed on needs no second look: whatever else is wrong here came later.
            return Bad("carried", True, {}, causes=distinct(tainted))
        facts = looking.facts_of(output)
        nan = facts.get("nan", 1) > 0
        if call.about.aten == "lift_fresh":  # numbers written into the program
            rows, (before, is_sure) = looking.bad_rows(output), self.numpy.behind(frame, nan=nan)
            return Bad("born", nan, facts, intended=is_sentinel(facts), rows=rows, before=before, is_sure=is_sure)
        suspects = [index for index in range(len(call.inputs)) if call.was_bad(index)]
        kind, causing = why(call, suspects, output, facts)
        return Bad(
            kind=kind,
            nan=nan,
            facts=facts,
            causes=distinct(
                [self._behind(call.value(i), call.behind[i], place, frame, call.inputs[i]) for i in causing]
            ),
            operands=self._operands(call, facts.get("first_index"), tuple(output.shape)),
            intended=kind == "born" and not nan and states_infinity(call),
            rows=looking.bad_rows(output),
        )

    def _operands(self, call: Call, first: list[int] | None, shape: tuple[int, ...]) -> tuple[Operand, ...]:
        return tuple(looking.operand(call.value(i), call.behind[i], first, shape) for i in range(len(call.inputs)))

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


def _is_part(tensor: Tensor) -> bool:
    """Whether a tensor is only a part of the memory it lives in."""
    if tensor.layout is not torch.strided or is_sharded(tensor):
        return False
    return tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes()
