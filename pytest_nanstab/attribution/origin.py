"""From the bad value at a sink back to the operation that is to blame, along what caused what."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_nanstab.attribution.history import Made
from pytest_nanstab.attribution.operations import friendly, of_node

_CONSTANTS = frozenset({"scalar_tensor", "full", "full_like", "fill", "tensor"})
_CLIPS = ("clip_grad", "get_total_norm")
_MOVES = frozenset(
    {"clone", "copy", "to", "contiguous", "expand", "view", "slice", "select", "cat", "stack", "index", "t"}
    | {"transpose", "permute", "reshape", "squeeze", "unsqueeze", "unbind", "split", "accumulate_grad"}
)


@dataclass(frozen=True)
class Origin:
    """Where a bad value at a sink comes from.

    Attributes:
        guilty: the operation to blame, or the tensor from outside that held the bad value already.
        path: from `guilty` to the sink, both included.
        others: further roots that reach the sink and are no consequence of `guilty`.
        intended: an infinity that was written into the program and that `guilty` let through, or made a NaN of.
    """

    guilty: Made
    path: tuple[Made, ...]
    others: tuple[Made, ...] = ()
    intended: Made | None = None

    @property
    def sink(self) -> Made:
        """What stood at the sink."""
        return self.path[-1]


def origin_of(sink: Made) -> Origin:
    """The root of a bad value.

    An infinity that the program states (a mask constant, a sentinel) is never blamed by itself: if nothing else is at
    the root, the operation that made a NaN of it is, or the one that let it through to the sink.
    """
    towards = _ancestors(sink)
    roots = [made for made, _ in towards.values() if _is_root(made)]
    to_blame = sorted((made for made in roots if not is_intended(made)), key=_order)
    if to_blame:
        first, *others = to_blame
        born = tuple(made for made in others if made.bad is not None and made.bad.kind == "born")
        return Origin(first, _path(first, towards), _apart(first, born))
    turned = [made for made, _ in towards.values() if made.bad is not None and made.bad.kind == "turned"]
    if turned:
        first = min(turned, key=_order)
        return Origin(first, _path(first, towards), intended=min(roots, key=_order))
    return _let_through(_path(min(roots, key=_order), towards))


_Towards = dict[int, "tuple[Made, Made | None]"]  # by identity: a record, and the next one on its way to the sink


def _ancestors(sink: Made) -> _Towards:
    """Everything that caused the bad value at the sink, by the shortest way."""
    towards: _Towards = {id(sink): (sink, None)}
    waiting = [sink]
    while waiting:
        made = waiting.pop(0)
        for cause in () if made.bad is None else made.bad.causes:
            if id(cause) not in towards:
                towards[id(cause)] = (cause, made)
                waiting.append(cause)
    return towards


def _path(made: Made, towards: _Towards) -> tuple[Made, ...]:
    path = [made]
    while (following := towards[id(path[-1])][1]) is not None:
        path.append(following)
    return tuple(path)


def _is_root(made: Made) -> bool:
    return made.bad is None or made.bad.kind in ("born", "outside") or not made.bad.causes


def _order(made: Made) -> tuple[int, int]:
    # What came in from outside was there first, whenever it was first read.
    outside = made.bad is not None and made.bad.kind == "outside"
    return (0 if outside else 1, made.number)


def is_intended(made: Made) -> bool:
    """Whether a bad value is an infinity that the program states: a mask constant, a sentinel."""
    return made.bad is not None and made.bad.intended


def _apart(guilty: Made, others: tuple[Made, ...]) -> tuple[Made, ...]:
    """Roots at another line than the guilty one: several operations of one line are one thing to mend."""
    seen = {guilty.place.spot}
    kept = []
    for made in others:
        if made.place.spot not in seen and made.phase == guilty.phase:
            seen.add(made.place.spot)
            kept.append(made)
    return tuple(kept)


def _let_through(path: tuple[Made, ...]) -> Origin:
    """The infinity of the program came through unchanged: blame what picked it out or added it up."""
    intended, later = path[0], path[1:]
    index = next((i for i, made in enumerate(later) if _reduces(made)), None)
    if index is None:
        index = next((i for i, made in enumerate(later) if made.op not in _MOVES), None)
    if index is None:
        return Origin(intended, path)
    return Origin(later[index], later[index:], intended=intended)


def _reduces(made: Made) -> bool:
    """Whether an operation has fewer results than it was given values."""
    if made.bad is None or not made.bad.operands:
        return False
    return math.prod(made.shape) < max(math.prod(operand.shape) for operand in made.bad.operands)


def first_use(path: tuple[Made, ...]) -> int:
    """The place in a path of the first operation that computed with a value, and did not only move it."""
    return next((i for i, made in enumerate(path) if i and made.op not in _MOVES), len(path) - 1)


def chain_of(path: tuple[Made, ...]) -> list[str]:
    """The operations from the root to the sink, as "exp (inf)", with the backward pass told apart."""
    words: list[str] = []
    last = ""
    for made in path:
        if made.bad is None or (_moves(made) and words):
            continue
        what = "nan" if made.bad.nan else "inf"
        name = title(made)
        word = name if what == last else f"{name} ({what})"
        if not words or words[-1].partition(" (")[0] != name:
            words.append(word)
        last = what
    return words


def _moves(made: Made) -> bool:
    forward = made.derivative_of
    op = made.op if made.phase != "backward" else forward.op if forward is not None else of_node(made.node or made.op)
    return op in _MOVES or made.op in _MOVES


def title(made: Made) -> str:
    """What an operation is called in a finding: "exp", "nll_loss in cross_entropy", "sqrt backward"."""
    if made.bad is not None and made.bad.kind == "outside":
        return made.bad.name or "a tensor"
    if made.phase == "optimizer" and made.by is not None and not is_in_clip(made):  # a closure may clip
        return f"{made.op} in {type(made.by).__name__}"
    if made.phase == "backward":
        return _derivative(made)
    name = operation_of(made)
    around = made.place.functional or (made.bad.called if made.bad is not None else None)
    around = friendly((around or name).strip("_"))
    return name if around == name else f"{name} in {around}"


def is_in_clip(made: Made) -> bool:
    """Whether one of torch's functions that clip gradients ran an operation."""
    return made.place.functional is not None and made.place.functional.strip("_").startswith(_CLIPS)


def came_by_clip(origin: Origin) -> bool:
    """Whether a bad value came by the norm that a clip takes of all gradients together."""
    return any(made.op == "norm" and is_in_clip(made) for made in origin.path)


def _derivative(made: Made) -> str:
    if made.place.spot is not None and not made.place.in_backward:
        return made.op  # written out in the user's own backward
    forward = made.derivative_of
    if forward is not None:
        return f"{operation_of(forward)} backward"
    return f"{of_node(made.node)} backward" if made.node is not None else made.op


def operation_of(made: Made) -> str:
    """The name of an operation: where torch only put a constant together, that of the function it did it for."""
    called = made.bad.called if made.bad is not None else None
    return friendly(called.strip("_")) if called is not None and made.op in _CONSTANTS else made.op


def line_of(made: Made) -> tuple[str, int] | None:
    """The user's line: of a derivative, the forward line that it belongs to."""
    forward = made.derivative_of
    while made.phase == "backward" and made.place.in_backward and forward is not None:
        made, forward = forward, forward.derivative_of
    return made.place.spot


def home_of(made: Made, *, written_out: bool = False) -> Made:
    """The record whose module and function say where an operation belongs: a derivative belongs to its forward.

    With `written_out` also one that the user's own backward computes.
    """
    while made.phase == "backward" and (made.place.in_backward or written_out) and made.derivative_of is not None:
        made = made.derivative_of
    return made
