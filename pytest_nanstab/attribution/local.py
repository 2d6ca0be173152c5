"""Naming the operation where nothing is run again: the failing computation alone is repeated, traced, on the spot.

Parameters have not changed yet when a loss, a gradient or an output is judged, and what the user's code computed it
from is still there. So the statements that computed it (`slices`), or the outermost module call, are run once more.
Random states, buffers and the attributes of modules are put back; gradients are never written to. What the repetition
shows counts only if the same value is bad again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_nanstab.attribution import asserted, plan, slices
from pytest_nanstab.attribution.account import Known, retold
from pytest_nanstab.attribution.entered import AtHand
from pytest_nanstab.attribution.growth import Growth, explosion_in
from pytest_nanstab.attribution.keeping import kept
from pytest_nanstab.attribution.origin import is_intended, origin_of
from pytest_nanstab.attribution.purity import verdict_on_call
from pytest_nanstab.attribution.source import RUNNER, is_user_file
from pytest_nanstab.attribution.tracing import LocalTrace, optimizers_of
from pytest_nanstab.findings import Finding
from pytest_nanstab.watching import measure, torch_private, verdicts
from pytest_nanstab.watching.names import Names, owner
from pytest_nanstab.watching.pending import leaves_of

if TYPE_CHECKING:
    from pytest_nanstab.attribution.history import Made
    from pytest_nanstab.watching.region import Region

_MOST = 2  # attempts per region: a loop that goes on failing is explained by its first failures
_UNSEEN = "the operation cannot be seen from here, a rerun of the test shows it:"


@dataclass
class Hint:
    """What is at hand where a finding is made.

    Attributes:
        spot: the user's line that gave the loss to `backward()`.
        call: (module, arguments, keyword arguments) of an outermost call whose output is bad.
        leaves: the tensors whose gradients are bad.
        closure: the function that an optimizer has called to compute the loss.
        frames: the user's functions that were running at the `backward()`, the innermost first.
        at_hand: what the bad value was computed from, where that may not be the last call.
    """

    spot: tuple[str, int] | None = None
    call: tuple[nn.Module, Any, Any] | None = None
    leaves: Sequence[Tensor] = ()
    closure: Any = None
    frames: Sequence[FrameType] = ()
    at_hand: AtHand | None = None


def explained(region: Region, finding: Finding, hint: Hint) -> Finding:
    """The finding with its origin, if a repetition on the spot shows it; else with how to see it."""
    if region.local_attempts >= _MOST:
        return finding
    region.local_attempts += 1
    hint.closure = region.closure
    try:
        told = _attempted(region, finding, hint)
    except Exception as error:  # noqa: BLE001 - looking meets objects of the user's, whose methods may raise anything
        return broken_off(finding, error)
    return advised(told or finding)


def broken_off(finding: Finding, error: Exception) -> Finding:
    """The finding without its origin, because looking for it met something that raised."""
    told = advised(finding)
    return replace(told, evidence={"note": plan.broken_off(error), **told.evidence})


def behind_assertion(error: BaseException) -> Finding | None:
    """Where the NaN comes from that a test's own assertion has met: its statements, run once more."""
    frame, line = asserted.failed_line(error)
    if frame is None:
        return None
    scope = slices.scope_of_frame(frame)
    for name, tensor, holder in asserted.bad_tensors(frame, line):
        found = slices.slice_of(scope, line, _state_of, _expression(holder))
        if found is not None and found.body:
            told = _told_of(found, asserted.asserted(name, tensor, frame, line))
            if told is not None:
                return told
    return None


def behind_check(error: BaseException, finding: Finding) -> Finding | None:
    """Where what `assert_finite` has found comes from: the test's statements, run once more."""
    frame, line = asserted.failed_line(error)
    given = None if frame is None else asserted.asked_about(frame, line)
    if frame is None or given is None:
        return None
    found = slices.slice_of(slices.scope_of_frame(frame), line, _state_of, given)
    return None if found is None else _told_of(found, finding)


def _told_of(found: slices.Slice, finding: Finding) -> Finding | None:
    names = Names()
    way = _Way(lambda trace: trace.behind(found.run()), found.given(), found.verdict().owners)
    with _repetition(names, way) as (trace, drew):
        try:
            made = way.run(trace)
        except Exception:  # noqa: BLE001 - the user's code, run once more, may raise anything
            return None
        if made is None or is_intended(origin_of(made).guilty):
            return None
        told = retold(finding, origin_of(made), Known(names, trace.batch_size))
        told = _of_another_draw(told) if drew() else told
    return told if told.op is not None else None


# -- the ways to repeat ------------------------------------------------------------------------------------------------


def _attempted(region: Region, finding: Finding, hint: Hint) -> Finding | None:
    for way in _ways(finding, hint, region):
        told = _tried(region, finding, way)
        if told is not None:
            return told
    return None


def _tried(region: Region, finding: Finding, way: _Way) -> Finding | None:
    """What one way of repeating shows; None when the value is good this time, or nothing is known about it."""
    with region.at_rest(), _repetition(region.names, way) as (trace, drew):
        trace.step = finding.step or 1
        try:
            made = way.run(trace)
        except Exception:  # noqa: BLE001 - the user's code, run once more, may raise anything: the next way, then
            return None
        if made is None or trace.failed is not None:
            return None
        known = Known(region.names, trace.batch_size, explosion_in(region.run, Growth()), optimizers_of(region))
        finding = _of_leaf(finding, None if trace.leaf is None else region.names.parameter(trace.leaf))
        told = retold(finding, origin_of(made), known)
        told = _of_another_draw(told) if drew() else told
    if finding.kind == "nonfinite-input" and told.evidence.get("chain"):
        # What is repeated goes on from the input, to what it has spoiled.
        told = replace(told, evidence={**told.evidence, "chain": [*told.evidence["chain"][:-1], way.end]})
    if told.op is None and told.phase != "data" and told.kind == finding.kind:
        return None
    return told


def _of_leaf(finding: Finding, name: str | None) -> Finding:
    """The finding about the gradient that went bad by itself: a clip has spoiled all of them together."""
    before = finding.evidence.get("parameter")
    if name is None or before is None or name == before:
        return finding
    return replace(
        finding,
        message=finding.message.replace(f"gradient of {before}", f"gradient of {name}"),
        module=owner(name),
        evidence={**finding.evidence, "parameter": name, "tensor": f"gradient of {name}"},
    )


def _of_another_draw(finding: Finding) -> Finding:
    """Without the numbers that belong to the repetition only: it has drawn other random numbers than the run."""
    own = ("rows", "row_count", "first_index")
    evidence = {key: value for key, value in finding.evidence.items() if key not in own}
    note = "counts and ranges are those of a repetition, which drew other random numbers than the run"
    command = _traced(finding)
    more = {"note": f"{note}; a rerun has those of the run:", "trace": command} if command else {"note": note}
    return replace(finding, evidence={**evidence, **more})


def _traced(finding: Finding) -> str | None:
    """The command that runs the test once more with every operation traced; None outside of pytest."""
    again = str(finding.evidence.get("again", ""))
    return again.replace("pytest ", "pytest -o nanstab_explain=rerun ", 1) if again.startswith("pytest ") else None


@dataclass
class _Way:
    """One way to repeat the computation; `run` returns the record behind the bad value, or None.

    Attributes:
        run: the repetition.
        values: what it is given.
        owners: the objects whose attributes it may change.
        end: what it computes.
    """

    run: Callable[[LocalTrace], Made | None]
    values: Sequence[Any]
    owners: Sequence[Any] = ()
    end: str = "loss"


def _ways(finding: Finding, hint: Hint, region: Region) -> Iterator[_Way]:
    at_hand = hint.at_hand or region.outputs.at_hand()
    leaves = hint.leaves if finding.kind == "nonfinite-gradient" else None
    if finding.kind in ("nonfinite-loss", "nonfinite-gradient", "nonfinite-input"):
        for found in _slices(hint):
            yield _Way(_of_loss(found.run, leaves), found.given(), found.verdict().owners)
        entered = at_hand.entered
        function = None if entered is None else entered.function()
        if entered is not None and function is not None:
            verdict = verdict_on_call(MethodType(function, entered.arguments[0]))
            if verdict.pure:
                owners = [*verdict.owners, entered.arguments[0]]
                yield _Way(_of_loss(entered.loss, leaves), entered.arguments, owners)
    call = hint.call if hint.call is not None else at_hand.call
    if call is not None:
        verdict = verdict_on_call(call[0])
        if verdict.pure:
            yield _Way(_of_call(call, leaves), [*call[1], *call[2].values()], verdict.owners, "output")


def _slices(hint: Hint) -> Iterator[slices.Slice]:
    """The statements that computed the loss, in the function that differentiated it or in the one that handed it on."""
    for frames in (hint.frames, list(user_frames())):
        yield from _slices_of(hint, list(_scopes(hint, frames)))


def _slices_of(hint: Hint, scopes: Sequence[slices.Scope]) -> Iterator[slices.Slice]:
    lines = [_line_of_loss(scope, hint) for scope in scopes]
    if not any(lines):  # the function that called `backward` has returned: somebody's engine, or a helper
        lines = [slices.line_of_backward(scope) for scope in scopes]
    for index, (scope, line) in enumerate(zip(scopes, lines, strict=True)):
        if line is None:
            continue
        found = slices.slice_of(scope, line, _state_of)
        if found is None and index + 1 < len(scopes):
            caller = scopes[index + 1]
            handed = slices.handed_by(caller, scope, line)
            found = None if handed is None else slices.slice_of(caller, caller.line, _state_of, handed)
        if found is not None:
            yield found


def _scopes(hint: Hint, frames: Sequence[FrameType]) -> Iterator[slices.Scope]:
    """The user's functions, the innermost first, and before them a closure that has just returned."""
    closure = None if hint.closure is None else slices.scope_of_function(hint.closure)
    if closure is not None:
        yield closure
    for frame in frames:
        yield slices.scope_of_frame(frame)


def _line_of_loss(scope: slices.Scope, hint: Hint) -> int | None:
    if hint.spot is None:
        return slices.line_of_backward(scope)
    return hint.spot[1] if scope.filename == hint.spot[0] and slices.covers(scope, hint.spot[1]) else None


def _of_loss(compute: Callable[[], Any], leaves: Sequence[Tensor] | None) -> Callable[[LocalTrace], Made | None]:
    def run(trace: LocalTrace) -> Made | None:
        with torch.enable_grad():
            loss = compute()
            return trace.behind(loss) if leaves is None else _behind_gradient(trace, loss, leaves)

    return run


def _of_call(call: tuple[nn.Module, Any, Any], leaves: Sequence[Tensor] | None) -> Callable[[LocalTrace], Made | None]:
    def run(trace: LocalTrace) -> Made | None:
        module, args, kwargs = call
        if leaves is None:
            return trace.behind(module(*args, **kwargs))
        # What it was given belongs to a graph that is used up: the bad gradient may be one that it hands on.
        args, kwargs = pytree.tree_map(_detached, (args, kwargs))
        given = [t for _, t in measure.tensors_in([args, kwargs]) if t.requires_grad and t.is_leaf]
        with torch.enable_grad():
            output = module(*args, **kwargs)
            loss = getattr(output, "loss", None) if not isinstance(output, Tensor) else output
            return _behind_gradient(trace, loss, [*leaves, *given])

    return run


def _detached(value: Any) -> Any:
    is_computed = isinstance(value, Tensor) and value.grad_fn is not None
    return value.detach().requires_grad_() if is_computed else value


def _behind_gradient(trace: LocalTrace, loss: Any, leaves: Sequence[Tensor]) -> Made | None:
    """The record behind a bad gradient; the user's own gradients are afterwards what they were."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        return None
    every = {id(leaf): leaf for leaf in (*leaves, *leaves_of(loss))}.values()
    if any(map(torch_private.acts_on_arrival, every)):  # steps an optimizer, say; `grad` does not call it
        reached = [leaf for leaf in leaves if leaf.requires_grad]
        return trace.behind([g for g in torch.autograd.grad(loss, reached, allow_unused=True) if g is not None])
    kept = [(leaf, leaf.grad) for leaf in every]
    try:
        for leaf, _ in kept:
            leaf.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        known = ((leaf, trace.behind(leaf.grad)) for leaf in leaves if leaf.grad is not None)
        trace.leaf, made = next(((leaf, made) for leaf, made in known if made is not None), (None, None))
        return made
    finally:
        for leaf, gradient in kept:
            leaf.grad = gradient


def user_frames() -> Iterator[FrameType]:
    """The user's functions that are running, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and RUNNER not in frame.f_code.co_filename:
        if is_user_file(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _state_of(value: Any) -> slices.State:
    """What a name's value is worth for a repetition: a graph is used up, and a bad value is to be computed anew."""
    if isinstance(value, nn.Module) or callable(value):
        return "good"
    tensors = [tensor for _, tensor in measure.all_tensors_in(value)]
    with torch_private.unseen():
        if any(tensor.grad_fn is not None for tensor in tensors):
            return "gone"
    extents = (measure.extent(tensor) for tensor in tensors if not isinstance(tensor, nn.Parameter))
    return "bad" if any(seen is not None and not seen.finite for seen in extents) else "good"


def _expression(dotted: str) -> Any:
    import ast

    return ast.parse(dotted, mode="eval").body


def advised(finding: Finding) -> Finding:
    """The finding with the command that shows its operation, where one would."""
    arrived = finding.cause in (verdicts.ARRIVED, verdicts.KEPT)  # only that it did: a rerun sees the way
    if finding.op is not None or (finding.cause is not None and not arrived):
        return finding
    command, more = _traced(finding), {}
    if command is not None:
        seen = "if the test computed it, a rerun of the test shows where:" if arrived else _UNSEEN
        more = {"note": seen, "trace": command}
    elif arrived:
        more = {"note": "if the program computed it, a test marked nanstab that runs it shows where"}
    return replace(finding, evidence={**finding.evidence, **more})


# -- leaving no trace --------------------------------------------------------------------------------------------------


@contextmanager
def _repetition(names: Names, way: _Way) -> Iterator[tuple[LocalTrace, Callable[[], bool]]]:
    """Trace the block; afterwards all that it could change is what it was. Also tells whether it drew at random."""
    modules = [*names.roots(), *(value for value in way.values if isinstance(value, nn.Module))]
    modules += [m for owner in way.owners for m in vars(owner).values() if isinstance(m, nn.Module)]
    parts = {id(part): part for module in modules for part in module.modules()}
    owners = {id(owner): owner for owner in way.owners if id(owner) not in parts}
    trace = LocalTrace(names)
    try:
        with kept(parts.values(), owners.values(), way.values) as drew, trace:
            yield trace, drew
    finally:
        trace.forget()
