"""The first of the user's lines that turned a corrupted sample into a bad output, from a traced run.

From the bad value that comes out, the trace is walked back over the names that each line reads. A value that was bad
from the start passed a check that did not see it, or a repair that did not mend it: that line is the one to look at.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import numpy as np
import torch

from pytest_nanstab.batches import trees
from pytest_nanstab.checks._leaves import numeric_leaves
from pytest_nanstab.corruptions.model import Corruption
from pytest_nanstab.corruptions.rows import as_array, is_rows
from pytest_nanstab.pipelines import outputs
from pytest_nanstab.pipelines.trace import Badness, Call, LineTrace, Spot, Step

_GAPS = ("NAType", "NaTType", "NoneType")


# --- what counts as bad


def badness_for(corruption: Corruption, leak: outputs.Leak | None) -> Badness:
    """What to follow through a run: the number that a cast made, NaN where only NaN came out, or anything bad.

    An infinity on the way to a NaN may be meant (a mask of -inf), unless it was put in.
    """
    if leak is not None and leak.made is not None:
        made = leak.made
        return lambda value: _holds_number(value, made)
    only_nan = leak is not None and leak.damage is not None and not leak.damage.inf and "Inf" not in corruption.name
    missing, binary = corruption.family == "missing", corruption.family != "text"
    return lambda value: _badness(value, only_nan=only_nan, missing=missing, binary=binary)


def _badness(value: Any, *, only_nan: bool, missing: bool, binary: bool) -> Any:
    if type(value).__name__ in _GAPS:
        return "missing" if missing else None
    if not _is_data(value):
        return None
    try:
        leak = outputs.leak(value, binary=binary)
    except Exception:  # noqa: BLE001 - half-built objects and foreign containers are nobody's fault
        return None
    if leak is None or (only_nan and leak.damage is not None and not leak.damage.nan):
        return None
    return leak.words


def _is_data(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray, np.generic, float, str, bytes)) or (
        is_rows(value) or trees.is_node(value)
    )


def _holds_number(value: Any, made: int) -> Any:
    if not (is_rows(value) or trees.is_node(value)):
        return None
    for leaf in numeric_leaves(value):
        array = as_array(leaf.values)
        if array.dtype.kind in "iu" and bool((array == made).any()):
            return leaf.field
    return None


# --- which line


def line_of(trace: LineTrace, corruption: Corruption, policy: str, leak: outputs.Leak | None) -> Spot | None:
    """The line to look at; None where no line of the user's had a hand in it.

    Args:
        trace: of the run with the corruption.
        corruption: what was put in.
        policy: "reject": a check that did not see what is no value comes first; "sanitize": a repair does.
        leak: what came out; None where it was swallowed.
    """
    if leak is None:
        return _swallowing(trace, corruption, policy)
    way = _way(trace)
    blamed = _blind_line(trace, corruption, policy, way, leak) if corruption.invalid else None
    return blamed or (way[0].spot if way else _handed_on(trace))


def _blind_line(
    trace: LineTrace, corruption: Corruption, policy: str, way: list[Step], leak: outputs.Leak
) -> Spot | None:
    """The check that did not see what is no value, the repair that did not mend it, or the decoder that let it in."""
    came_in = not way or bool(way[0].bad_reads)
    if corruption.family == "text":
        found = [step.spot for step in way if step.line.repairs and step.bad_reads]
        return found[0] if found else None
    if policy == "reject":
        checks = [spot for call, step in trace.order if (spot := _checked_at(trace, call, step)) is not None]
        return checks[-1] if checks and came_in else None
    # What comes out infinite although it was repaired was made too large by the repair.
    large = leak.damage is not None and bool(leak.damage.inf)
    steps = way if came_in else [step for _, step in trace.order if large]
    repairs = [step for step in steps if step.line.repairs and step.bad_reads]
    return _asked_at(trace, repairs[-1]) if repairs else None


def _asked_at(trace: LineTrace, repair: Step) -> Spot:
    """Where a repair asked which values are bad, when it did so on a line of its own."""
    call = next(call for call, step in trace.order if step is repair)
    before = call.steps[: call.steps.index(repair)]
    for name in repair.line.reads:
        if name in repair.before:
            continue
        maker = next((earlier for earlier in reversed(before) if name in earlier.line.sets), None)
        if maker is not None and maker.line.asks and maker.bad_reads:
            return maker.spot
    return repair.spot


def keeping_line(trace: LineTrace) -> Spot | None:
    """The first line that kept something: something bad where that is seen, else anything."""
    bad = [step for _, step in trace.order if any(name.startswith("self.") for name in step.changed)]
    if bad:
        return _call_of_keeper(trace, bad[0]).spot
    return next((step.spot for _, step in trace.order if step.keeps), None)


def _call_of_keeper(trace: LineTrace, step: Step) -> Step:
    """The innermost line that called what kept something: it is the one to move below the check."""
    for number in step.calls:
        for inner in trace.calls[number].steps:
            if inner.calls and any(name.startswith("self.") for name in inner.changed):
                return _call_of_keeper(trace, inner)
    return step


def stage_of(trace: LineTrace) -> str | None:
    """The first object of a library that gave something bad back."""
    return next((name for name, bad in trace.stages if bad is not None), None)


def _swallowing(trace: LineTrace, corruption: Corruption, policy: str) -> Spot | None:
    """The last line that computed with something bad: what comes after it is finite again.

    Where that line raised, it is the handler that went on; a text is swallowed by what decodes or encodes it. A check
    that looked at the value and did not see it comes before what it then became finite in.
    """
    found = [(call, step) for call, step in trace.order if step.bad_reads and not step.line.is_move | step.line.is_loop]
    if not found:
        return None
    coders = [(call, step) for call, step in found if step.line.repairs and corruption.family == "text"]
    coders.sort(key=lambda pair: bool(pair[1].calls))  # a function of the user's may have the name of a decoder
    inner = [(call, step) for call, step in found if not step.calls]
    found = coders[:1] or inner or found
    handlers = [step.spot for call, last in found for step in _handlers_after(call, last)]
    if handlers:
        return handlers[-1]
    blind = policy == "reject" and corruption.invalid and corruption.family == "nonfinite"
    checks = [spot for call, step in trace.order if blind and (spot := _checked_at(trace, call, step)) is not None]
    return checks[-1] if checks else found[-1][1].spot


def _handlers_after(call: Call, step: Step) -> list[Step]:
    after = call.steps[call.steps.index(step) + 1 :]
    return list(takewhile(lambda later: later.line.handles, after))


def _checked_at(trace: LineTrace, call: Call, step: Step) -> Spot | None:
    """The line that looked at the bad value for a check: the check itself, or what it tests."""
    if not step.line.is_guard:
        return None
    if step.bad_reads:
        return _asking(trace, step) or step.spot
    return _looked(call, step, 3)


def _asking(trace: LineTrace, step: Step) -> Spot | None:
    """The line of a function that a check has asked, where it looked at the value."""
    inner = [asked for number in step.calls for asked in trace.calls[number].steps if asked.bad_reads]
    return inner[-1].spot if inner and not inner[-1].line.is_guard else None


def _looked(call: Call, step: Step, depth: int) -> Spot | None:
    """Where a name that a check tests was computed from something bad."""
    before = call.steps[: call.steps.index(step)] if depth else []
    for name in step.line.reads:
        maker = next((earlier for earlier in reversed(before) if name in earlier.line.sets), None)
        if maker is None or maker.line.is_loop or maker.line.is_move:
            continue
        found = maker.spot if maker.bad_reads else _looked(call, maker, depth - 1)
        if found is not None:
            return found
    return None


# --- walking back


def _way(trace: LineTrace) -> list[Step]:
    """The lines that had a hand in the bad result of the first call that has one, the earliest first."""
    for call in trace.outermost():
        if call.result is not None and call.steps:
            found = _within(trace, call, _giving(call))
            if found:
                return found
    return []


def _handed_on(trace: LineTrace) -> Spot | None:
    """Where something bad was given back by lines that compute nothing."""
    for call in trace.outermost():
        if call.result is not None and call.steps:
            return call.steps[_giving(call)].spot
    return None


def _giving(call: Call) -> int:
    """The step that gave the result back: leaving a `with` block comes after it."""
    steps = range(len(call.steps) - 1, -1, -1)
    return next((at for at in steps if call.steps[at].line.is_return), len(call.steps) - 1)


def _within(trace: LineTrace, call: Call, index: int) -> list[Step]:
    """From one step of a call back to the earliest that its bad value comes from; lines that only hand on left out."""
    step = call.steps[index]
    own = [] if step.line.is_loop or (step.line.is_move and step.bad_reads) else [step]
    for name in step.bad_reads:
        if call.given.get(name) == step.before[name]:
            continue
        earlier = next((at for at in range(index - 1, -1, -1) if name in call.steps[at].changed), None)
        found = [] if earlier is None else _within(trace, call, earlier)
        if found:
            return [*found, *own]
    for entered in (trace.calls[number] for number in step.calls):
        if entered.result is not None and entered.steps:
            return [*_within(trace, entered, _giving(entered)), *own]
    return own
