"""What depth does to signal and gradient: the layers of a pass in order, and how much each end gets of the other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

from pytest_nanstab.propagation.passes import BOUNDED, NORMS, Op, Pass

# A network whose first layers get less than this share of the sensitivity of its last ones does not train them, and
# one whose signal grows or shrinks by as much computes with its last bits. Calibrated in `tests/test_calibration.py`:
# no healthy program comes near.
SMALLEST, LARGEST = 1e-3, 1e3
# Fewer layers are no depth: what happens there is one layer's own doing.
FEWEST = 3


@dataclass(eq=False)
class Layer:
    """One weight-bearing layer, by its most sensitive call.

    Attributes:
        name: dotted path of the module, or of the parameter where a module holds several.
        op: that call.
        weights: the names of its parameters.
        above: the layers its input went through, by the index of their `op`.
        below: the layers its result goes through, likewise.
    """

    name: str
    op: Op
    weights: frozenset[str]
    above: set[int] = field(default_factory=set)
    below: set[int] = field(default_factory=set)


@dataclass
class Depth:
    """A signal or gradient that depth has all but extinguished, or blown up.

    Attributes:
        what: "gradient" or "signal".
        total: the factor over all the layers between.
        layers: the layers in order, from the input's side.
        first, last: the ends between which it happened.
        shares: by operation, the factor it has contributed, the strongest first.
        steps: how many layers, or calls of the same layer, the factor is spread over.
        repeated: the one layer that most of these calls are, of a recurrence.
    """

    what: str
    total: float
    layers: list[Layer]
    first: Layer
    last: Layer
    shares: dict[str, float]
    steps: int = 1
    repeated: Layer | None = None

    @property
    def factor(self) -> float:
        """The factor per layer."""
        return float(self.total ** (1 / self.steps))

    @property
    def vanishes(self) -> bool:
        """Whether it shrinks."""
        return self.total < 1


def layers_of(seen: Pass, *, frozen: bool = False) -> list[Layer]:
    """The layers that take part in the gradient, in order of their first call, each with those before and after it.

    `frozen`: those that do not as well.
    """
    best: dict[frozenset[str], Op] = {}
    bits: dict[frozenset[str], int] = {}  # one of each layer, in order of the first calls
    before: dict[frozenset[str], int] = {}  # those of the layers before any of its calls
    reached: list[int] = []  # by operation: those of the layers its result has gone through
    for op in seen.ops:
        inputs = 0
        for source in op.sources:
            inputs |= reached[source.index]
        reached.append(inputs)
        if not op.mixes or not (op.trained or frozen):
            continue
        weights = op.matrices
        reached[-1] |= bits.setdefault(weights, 1 << len(bits))
        before[weights] = before.get(weights, 0) | inputs
        known = best.get(weights)
        if known is None or (op.sensitivity or 0.0) > (known.sensitivity or 0.0):
            best[weights] = op
    layers = [Layer(_name(op), op, weights) for weights, op in best.items()]
    for mine in layers:
        for other in layers:
            if other is not mine and before[mine.weights] & bits[other.weights]:
                mine.above.add(other.op.index)
                other.below.add(mine.op.index)
    return layers


def place(depth: Depth) -> str:
    """What to call the part of the model that does it: a recurrence's layer, the block that holds the layers between
    the ends of a signal, or the layer at which a gradient has gone."""
    if depth.repeated is not None:
        return depth.repeated.name
    if depth.what == "gradient":
        return depth.first.name
    inside = [layer.name.split(".") for layer in depth.layers if layer not in (depth.first, depth.last)]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*inside, strict=False))
    return ".".join(parts[0] for parts in shared) or depth.first.name


def _name(op: Op) -> str:
    """The module where all its parameters live, else the longest name."""
    names = sorted(op.weights, key=lambda name: ("bias" in name, name))
    owners = {_owner(name) for name in names}
    owner = owners.pop() if len(owners) == 1 else None
    return owner or names[0]


def _owner(name: str) -> str:
    """The module a parameter belongs to, also through a parametrization."""
    module, parametrized, _ = name.partition(".parametrizations.")
    return module if parametrized else name.rpartition(".")[0]


def gradient_depth(seen: Pass) -> Depth | None:
    """The layers that the gradient does not reach, or reaches a thousandfold; None when all is well.

    Measured as |dL/dy| |y|, which rectifiers and linear layers hand on unchanged, so neither width nor the scale of the
    data plays a part. A branch that starts near zero beside a stream that does not is no decay: what counts is the best
    that a layer, or any layer before it, gets. Exact zeros count only where the gradient has shrunk step by step until
    nothing was left of it.
    """
    layers = layers_of(seen)
    by_index = {layer.op.index: layer for layer in layers}
    consumers, straight = seen.consumers(), _straight(seen)
    small: list[tuple[float, Layer, Layer]] = []
    large: list[tuple[float, Layer, Layer]] = []
    for layer in layers:
        below = [by_index[index] for index in layer.below]
        if len(below) < FEWEST - 1 or layer.op.gradient is None:
            continue
        own = layer.op.sensitivity or _shrunk(layer.op, consumers)
        if not own or not math.isfinite(own):
            continue
        best = max([own, *(by_index[index].op.sensitivity or 0.0 for index in layer.above)])
        top = max(below, key=lambda other: other.op.sensitivity or 0.0)
        ends = [other for other in (layer, *below) if other.weights in straight]
        end = max(ends, key=lambda other: other.op.sensitivity or 0.0, default=None)
        small += [(best / size, layer, top) for size in (top.op.sensitivity,) if size and best < SMALLEST * size]
        if end is not None:
            large += [(own / size, layer, end) for size in (end.op.sensitivity,) if size and own > LARGEST * size]
    for total, first, last in [
        *sorted(small, key=lambda entry: entry[0]),
        *sorted(large, key=lambda entry: -entry[0]),
    ]:
        path = path_between(seen, first.op, last.op)
        if total > 1 or total < SMALLEST * _beside(path):
            calls = [op for op in path if op.mixes]
            return Depth(
                "gradient",
                total,
                layers,
                first,
                last,
                _shares(path),
                max(len(calls) - 1, 1),
                _repeated(calls[1:], layers),
            )
    return None


def _beside(path: Sequence[Op]) -> float:
    """The factor by which the addition to a larger stream makes a path's part of the signal small: a choice, no decay.

    Only the strongest one counts: many of them are a recurrence that forgets.
    """
    return min(
        (
            source.norm / op.norm
            for op, source in pairwise(path)
            if op.name == "add" and _has_stream(op, source) and op.norm and source.norm and source.norm < op.norm
        ),
        default=1.0,
    )


def _has_stream(op: Op, source: Op) -> bool:
    """Whether something that trains, or the data itself, is added to `source`; a detached copy is no stream."""
    return op.raw or any(other.trained for other in op.sources if other is not source)


def _repeated(calls: Sequence[Op], layers: Sequence[Layer]) -> Layer | None:
    """The layer that is called three times or more, and makes up most of the calls."""
    counts = Counter(op.matrices for op in calls)
    weights, count = counts.most_common(1)[0] if counts else (frozenset(), 0)
    if count < FEWEST or count * 2 <= len(calls):
        return None
    return next((layer for layer in layers if layer.weights == weights), None)


def _straight(seen: Pass) -> set[frozenset[str]]:
    """The layers, by their weights, whose result reaches the loss without another layer: each of them is an end, also
    one whose code has a loss of its own beside those behind it."""
    reaches = {seen.ops[-1].index} if seen.ops else set()
    for op in reversed(seen.ops):
        if op.index in reaches and not (op.mixes and op.trained):
            reaches.update(source.index for source in op.sources)
    return {op.matrices for op in seen.ops if op.mixes and op.trained and op.index in reaches}


def _shrunk(op: Op, consumers: dict[int, list[Op]]) -> float | None:
    """Of a result whose gradient is exactly zero: the sensitivity at the nearest operations behind it that have one."""
    waiting, known, reached = [op], {op.index}, []
    while waiting:
        for other in consumers.get(waiting.pop().index, []):
            if other.index in known:
                continue
            known.add(other.index)
            if other.sensitivity:
                reached.append(other.sensitivity)
            else:
                waiting.append(other)
    return max(reached, default=None)


def signal_depth(seen: Pass) -> Depth | None:
    """A signal that leaves [1e-3, 1e3] of the size it had behind the first layer, and stays there to the last one.

    A normalisation or a bounded activation gives it a new size, and a residual stream beside a small branch keeps its.
    What the last layer makes of a healthy signal is its own choice of scale.
    """
    layers = layers_of(seen, frozen=True)
    starts = _starts(seen)
    for layer in reversed(layers):
        op = layer.op
        start = starts.get(op.index)
        if layer.below or start is None or not op.size_in or not start.op_size:
            continue
        total = op.size_in / start.op_size
        calls = [other for other in seen.ops[start.first.index + 1 : op.index + 1] if other.mixes]
        if not _within(total) and len(calls) >= FEWEST - 1:
            first = next((other for other in layers if other.op is start.first), layers[0])
            return Depth("signal", total, layers, first, layer, {}, len(calls), _repeated(calls, layers))
    return None


@dataclass(frozen=True)
class _Start:
    """Where the signal got the size that it is compared with."""

    op_size: float
    first: Op


def _starts(seen: Pass) -> dict[int, _Start | None]:
    """For each operation, the start of the signal that goes into it: of the largest of its operands."""
    out: dict[int, _Start | None] = {}
    into: dict[int, _Start | None] = {}
    for op in seen.ops:
        sized = [source for source in op.sources if source.size]
        source = max(sized, key=lambda item: item.size or 0.0, default=None)
        start = None if source is None else out.get(source.index)
        into[op.index] = start
        if op.name in NORMS or op.name in BOUNDED or (op.mixes and start is None):
            # Of a gate that is all but closed, the size says nothing about the signal.
            start = _Start(max(op.size, 0.1) if op.name in BOUNDED else op.size, op) if op.size else None
        out[op.index] = start
    return into


def _within(size: float) -> bool:
    return SMALLEST <= size <= LARGEST


def path_between(seen: Pass, first: Op, last: Op) -> list[Op]:
    """The operations from `first` to `last` along which most of the gradient flows, from the end to the start."""
    reached = {first.index}
    for op in seen.ops[first.index + 1 : last.index + 1]:
        if any(source.index in reached for source in op.sources):
            reached.add(op.index)
    found = [last]
    while found[-1] is not first:
        sources = [source for source in found[-1].sources if source.index in reached]
        if not sources:
            break
        found.append(max(sources, key=lambda op: (op is first, op.sensitivity or 0.0)))
    return found


def _shares(path: Sequence[Op]) -> dict[str, float]:
    """By operation, the product of what it made of the gradient's size, relative to the size of the signal."""
    found: dict[str, float] = {}
    for op, source in pairwise(path):
        if op.sensitivity and source.sensitivity:
            found[op.name] = found.get(op.name, 1.0) * (source.sensitivity / op.sensitivity)
    return dict(sorted(found.items(), key=lambda item: abs(math.log(item[1])) if item[1] > 0 else 0.0, reverse=True))
