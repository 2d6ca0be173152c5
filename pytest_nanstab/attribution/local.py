"""Naming the operation where nothing is run again: the failing computation alone is repeated, traced, on the spot.

Parameters have not changed yet when a loss, a gradient or an output is judged, and what the user's code computed it
from is still there. So the statements that computed it (`slices`), or the outermost module call, are run once more.
Random states, buffers and the attributes of modules are put back; gradients are never written to. What the repetition
shows counts only if the same value is bad again.
"""

from __future__ import annotations

import contextlib
import io
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pytest_nanstab.attribution import asserted, slices
from pytest_nanstab.attribution.account import Known, retold
from pytest_nanstab.attribution.growth import Growth, explosion_in
from pytest_nanstab.attribution.origin import is_intended, origin_of
from pytest_nanstab.attribution.source import RUNNER, is_user_file
from pytest_nanstab.attribution.tracing import LocalTrace
from pytest_nanstab.findings import Finding
from pytest_nanstab.watching import measure, torch_private
from pytest_nanstab.watching.names import Names
from pytest_nanstab.watching.pending import leaves_of

if TYPE_CHECKING:
    from pytest_nanstab.attribution.history import Made
    from pytest_nanstab.watching.region import Region

_MOST = 2  # attempts per region: a loop that goes on failing is explained by its first failures


@dataclass
class Hint:
    """What is at hand where a finding is made.

    Attributes:
        spot: the user's line that gave the loss to `backward()`.
        call: (module, arguments, keyword arguments) of an outermost call whose output is bad.
        leaves: the tensors whose gradients are bad.
        closure: the function that an optimizer has called to compute the loss.
    """

    spot: tuple[str, int] | None = None
    call: tuple[nn.Module, Any, Any] | None = None
    leaves: Sequence[Tensor] = ()
    closure: Any = None


def explained(region: Region, finding: Finding, hint: Hint) -> Finding:
    """The finding with its origin, if a repetition on the spot shows it; else with how to see it."""
    if region.local_attempts >= _MOST:
        return finding
    region.local_attempts += 1
    hint.closure = region.closure
    try:
        told = _attempted(region, finding, hint)
    except Exception as error:  # noqa: BLE001 - the user's code, run once more, may raise anything
        return advised(finding, f"repeating the computation here failed ({type(error).__name__})")
    return told if told is not None else advised(finding)


def behind_assertion(error: BaseException) -> Finding | None:
    """Where the NaN comes from that a test's own assertion has met: its statements, run once more."""
    frame, line = asserted.failed_line(error)
    if frame is None:
        return None
    names = Names()
    for name, tensor, owner in asserted.bad_tensors(frame, line):
        value = _expression(owner)
        found = slices.slice_of(slices.scope_of_frame(frame), line, _state_of, value)
        if found is None or not found.body:
            continue
        with _repetition(names, frame) as trace:
            again = found.run()
            made = trace.behind(again)
            finding = asserted.asserted(name, tensor, frame, line)
            origin = None if made is None else origin_of(made)
            told = None if origin is None else retold(finding, origin, Known(names, trace.batch_size))
        if told is not None and told.op is not None and origin is not None and not is_intended(origin.guilty):
            return told
    return None


# -- the ways to repeat ------------------------------------------------------------------------------------------------


def _attempted(region: Region, finding: Finding, hint: Hint) -> Finding | None:
    for repeat in _ways(finding, hint, region):
        with region.at_rest(), _repetition(region.names, repeat.frame) as trace:
            trace.step = finding.step or 1
            made = repeat.run(trace)
            if made is not None and trace.failed is None:
                explosion = explosion_in(region.run, Growth())
                known = Known(region.names, trace.batch_size, explosion, region.constructed)
                told = retold(finding, origin_of(made), known)
                if told.op is not None or told.phase == "data":
                    return told
    return None


@dataclass
class _Way:
    """One way to repeat the computation; `run` returns the record behind the bad value, or None."""

    run: Callable[[LocalTrace], Made | None]
    frame: FrameType | None


def _ways(finding: Finding, hint: Hint, region: Region) -> Iterator[_Way]:
    backward = finding.kind == "nonfinite-gradient"
    if finding.kind in ("nonfinite-loss", "nonfinite-gradient", "nonfinite-input"):
        for scope, frame in _scopes(hint):
            line = _line_of_loss(scope, hint)
            found = None if line is None else slices.slice_of(scope, line, _state_of)
            if found is not None:
                yield _Way(_of_slice(found, hint.leaves if backward else None), frame)
    call = hint.call if hint.call is not None else region.outputs.last_call()
    if call is not None:
        yield _Way(_of_call(call, hint.leaves if backward else None), None)


def _scopes(hint: Hint) -> Iterator[tuple[slices.Scope, FrameType | None]]:
    """The user's functions that are running, the innermost first, and a closure that has just returned."""
    closure = None if hint.closure is None else slices.scope_of_function(hint.closure)
    if closure is not None:
        yield closure, None
    for frame in _user_frames():
        yield slices.scope_of_frame(frame), frame


def _line_of_loss(scope: slices.Scope, hint: Hint) -> int | None:
    if hint.spot is None:
        return slices.line_of_backward(scope)
    return hint.spot[1] if scope.filename == hint.spot[0] and slices.covers(scope, hint.spot[1]) else None


def _of_slice(found: slices.Slice, leaves: Sequence[Tensor] | None) -> Callable[[LocalTrace], Made | None]:
    def run(trace: LocalTrace) -> Made | None:
        with torch.enable_grad():
            loss = found.run()
            return trace.behind(loss) if leaves is None else _behind_gradient(trace, loss, leaves)

    return run


def _of_call(call: tuple[nn.Module, Any, Any], leaves: Sequence[Tensor] | None) -> Callable[[LocalTrace], Made | None]:
    def run(trace: LocalTrace) -> Made | None:
        module, args, kwargs = call
        if leaves is None:
            return trace.behind(module(*args, **kwargs))
        with torch.enable_grad():
            output = module(*args, **kwargs)
            loss = getattr(output, "loss", None) if not isinstance(output, Tensor) else output
            return _behind_gradient(trace, loss, leaves)

    return run


def _behind_gradient(trace: LocalTrace, loss: Any, leaves: Sequence[Tensor]) -> Made | None:
    """The record behind a bad gradient; the user's own gradients are afterwards what they were."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        return None
    every = {id(leaf): leaf for leaf in (*leaves, *leaves_of(loss))}.values()
    kept = [(leaf, leaf.grad) for leaf in every]
    try:
        for leaf, _ in kept:
            leaf.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return trace.behind([leaf.grad for leaf in leaves if leaf.grad is not None])
    finally:
        for leaf, gradient in kept:
            leaf.grad = gradient


def _user_frames() -> Iterator[FrameType]:
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
    if any(tensor.grad_fn is not None for tensor in tensors):
        return "gone"
    extents = (measure.extent(tensor) for tensor in tensors if not isinstance(tensor, nn.Parameter))
    return "bad" if any(seen is not None and not seen.finite for seen in extents) else "good"


def _expression(dotted: str) -> Any:
    import ast

    return ast.parse(dotted, mode="eval").body


def advised(finding: Finding, trouble: str | None = None) -> Finding:
    """The finding with the command that shows its operation, where one would."""
    if finding.op is not None or finding.cause is not None:
        return finding
    again = str(finding.evidence.get("again", ""))
    if not again.startswith("pytest "):
        return finding if trouble is None else replace(finding, evidence={**finding.evidence, "note": trouble})
    command = again.replace("pytest ", "pytest -o nanstab_explain=rerun ", 1)
    note = f"{f'{trouble}; ' if trouble else ''}the operation cannot be seen from here, a rerun of the test shows it:"
    return replace(finding, evidence={**finding.evidence, "note": note, "trace": command})


# -- leaving no trace --------------------------------------------------------------------------------------------------


@contextmanager
def _repetition(names: Names, frame: FrameType | None) -> Iterator[LocalTrace]:
    """Trace the block; afterwards random states, buffers and attributes of modules are what they were."""
    restores = [_random_states(), *(_module_state(module) for module in _modules(names, frame))]
    trace = LocalTrace(names)
    try:
        with trace, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield trace
    finally:
        trace.forget()
        with torch_private.unseen():
            for restore in restores:
                restore()


def _modules(names: Names, frame: FrameType | None) -> list[nn.Module]:
    """The modules the repetition may call: those seen so far, and those a frame's names hold."""
    values = [] if frame is None else [*frame.f_locals.values(), *_attributes(frame.f_locals.get("self"))]
    found = [*names.roots(), *(value for value in values if isinstance(value, nn.Module))]
    return list({id(part): part for module in found for part in module.modules()}.values())


def _attributes(value: Any) -> list[Any]:
    return list(getattr(value, "__dict__", {}).values())


def _module_state(module: nn.Module) -> Callable[[], None]:
    attributes = dict(module.__dict__)
    containers = {
        name: copy(value) for name, value in attributes.items() if (copy := _COPIES.get(type(value))) is not None
    }
    buffers = dict(module._buffers)
    values = [(b, b.detach().clone()) for b in buffers.values() if b is not None and not b.is_meta]

    def restore() -> None:
        for name, content in containers.items():
            _refill(attributes[name], content)
        module.__dict__.clear()
        module.__dict__.update(attributes)
        for buffer, value in values:
            if not torch.equal(buffer, value):
                buffer.copy_(value)

    return restore


_COPIES: dict[type, Callable[[Any], Any]] = {list: list, dict: dict, set: set}


def _refill(container: Any, content: Any) -> None:
    container.clear()
    container.extend(content) if isinstance(container, list) else container.update(content)


def _random_states() -> Callable[[], None]:
    cpu, python = torch.get_rng_state(), random.getstate()
    numpy: Any = sys.modules.get("numpy")
    legacy = None if numpy is None else numpy.random.get_state()

    def restore() -> None:
        torch.set_rng_state(cpu)
        random.setstate(python)
        if legacy is not None:
            numpy.random.set_state(legacy)

    return restore
