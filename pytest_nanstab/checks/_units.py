"""Units that have stopped passing gradient on: dead rectifiers, and activations that are all but flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_nanstab.propagation.depth import layers_of
from pytest_nanstab.propagation.passes import Op, Pass

# Share of a layer's units that may be dead. Healthy programs stay under 0.6 (`tests/test_calibration.py`); He et al.
# 2015 and Lu et al. 2019 ("Dying ReLU and initialization") know a few per cent to a half.
DEAD = 0.7
WIDE, NARROW = 16, 8
# Share of the elements of a bounded activation at which its slope is under a hundredth of the largest. Healthy hidden
# activations stay under 0.75; what goes straight into the loss may saturate, that is what it is trained for.
SATURATED = 0.9
# A softmax whose rows carry less than this share of the possible entropy, because their logits lie this far apart:
# one-hot, and without gradient (Vaswani et al. 2017, section 3.2.1, give it as the reason for 1/sqrt(d_k)). A trained
# attention may be sharp; a fresh one has no reason to be.
ONE_HOT, APART = 0.02, 20.0
FRESH_ONE_HOT, FRESH_APART = 0.2, 5.0

Key = tuple[str, str, tuple[str, int] | None, frozenset[str], int]


@dataclass(frozen=True)
class Dead:
    """A rectifier most of whose units are at an end, zero as a rule, for every sample.

    Attributes:
        op: one of its calls.
        feeds: the weight-bearing operation before it.
        dead: how many of its units.
        units: how many it has.
    """

    op: Op
    feeds: Op | None
    dead: int
    units: int


@dataclass(frozen=True)
class Flat:
    """An activation that is saturated nearly everywhere, with its share of such elements (or 1 - entropy)."""

    op: Op
    feeds: Op | None
    share: float


def dead_units(passes: Sequence[Pass]) -> list[Dead]:
    """The rectifiers of which at least 70 % of the units are zero in every pass, the first of them first.

    Calls at the same place behind the same layer are one: a recurrence unrolled. Only those that weights stand behind
    as well as in front of count: what goes into the loss may be zero.
    """
    found: dict[Key, tuple[Op, Op | None, tuple[bool, ...]]] = {}
    for seen in passes:
        hidden = _hidden(seen)
        for op in seen.ops:
            if op.dead is None or not op.trained or op.index not in hidden:
                continue
            feeds = feeding(op)
            key = (op.module, op.name, op.spot, frozenset() if feeds is None else feeds.weights, len(op.dead))
            known = found.get(key)
            both = op.dead if known is None else tuple(a and b for a, b in zip(known[2], op.dead, strict=True))
            found[key] = (op, feeds, both)
    results = [Dead(op, feeds, sum(units), len(units)) for op, feeds, units in found.values()]
    return [result for result in results if result.dead >= DEAD * result.units and _matters(result)]


def _matters(dead: Dead) -> bool:
    """Whether the dead units are no coin toss of a narrow layer: of fewer than 16 all must be dead, and of fewer than 8
    the layers before them cut off, as they are not in a branch such as a squeeze-and-excitation gate."""
    if dead.units >= WIDE:
        return True
    if dead.dead < dead.units:
        return False
    if dead.units >= NARROW or dead.feeds is None:
        return True
    return not any(op.gradient for op in _all_before(dead.feeds))


def _all_before(op: Op) -> list[Op]:
    """All trained weight-bearing operations before one."""
    waiting, known, found = [op], {op.index}, []
    while waiting:
        for source in waiting.pop().sources:
            if source.index not in known:
                known.add(source.index)
                waiting.append(source)
                if source.mixes and source.trained:
                    found.append(source)
    return found


def flat_activations(passes: Sequence[Pass], *, fresh: bool = False) -> list[Flat]:
    """The hidden bounded activations that are saturated in every pass, and softmaxes that are one-hot.

    `fresh`: the model is untrained.
    """
    found: dict[Key, Flat] = {}
    for seen in passes:
        hidden = _hidden(seen)
        for op in seen.ops:
            share = _flatness(op, fresh=fresh)
            if share is None or not op.trained or op.index not in hidden:
                continue
            feeds = feeding(op)
            key = (op.module, op.name, op.spot, frozenset() if feeds is None else feeds.weights, 0)
            known = found.get(key)
            # The least saturated call counts: one step of a recurrence may well be.
            if known is None or share < known.share:
                found[key] = Flat(op, feeds, share)
    return [flat for flat in found.values() if flat.share >= SATURATED]


def _flatness(op: Op, *, fresh: bool) -> float | None:
    if op.entropy is not None and op.spread is not None:
        entropy, spread = (FRESH_ONE_HOT, FRESH_APART) if fresh else (ONE_HOT, APART)
        return 1.0 if op.entropy < entropy and op.spread > spread else 0.0
    return op.saturated


def _hidden(seen: Pass) -> set[int]:
    """The operations that a weight-bearing layer stands behind, and softmaxes that weigh other activations inside the
    model: their gradient is what trains the layers before them."""
    ahead = {
        source.index
        for op in seen.ops
        if op.inside and op.name in ("mul", "matmul") and not op.weights and len(op.sources) > 1
        for source in op.sources
        if source.name in ("softmax", "to")
    }
    for op in reversed(seen.ops):
        if op.index in ahead or (op.mixes and op.trained):
            ahead.update(source.index for source in op.sources)
    return ahead


def feeding(op: Op) -> Op | None:
    """The nearest weight-bearing operation before one."""
    waiting, known = [op], {op.index}
    while waiting:
        here = waiting.pop(0)
        for source in sorted(here.sources, key=lambda item: -item.index):
            if source.mixes:
                return source
            if source.index not in known:
                known.add(source.index)
                waiting.append(source)
    return None


def layer_name(op: Op | None, seen: Sequence[Pass]) -> str | None:
    """The name of a weight-bearing operation's layer."""
    if op is None:
        return None
    return next((layer.name for item in seen for layer in layers_of(item) if layer.weights == op.matrices), None)
