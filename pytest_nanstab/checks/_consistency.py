"""Judging a model by itself: layers left out of what the others follow, and weights that break the signal."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from pytest_nanstab.checks import _schemes
from pytest_nanstab.checks._construction import construction_line
from pytest_nanstab.checks._schemes import Scheme
from pytest_nanstab.checks._signal import Executed
from pytest_nanstab.checks._spread import Measured
from pytest_nanstab.checks._weights import View
from pytest_nanstab.findings import Finding

HEALTHY = frozenset({"ok", "default (ok)", "not judged", "note"})
MAJORITY, AT_LEAST = 0.6, 3  # of a type, before the rest counts as forgotten
FACTOR = 30.0  # one layer's change of the signal that no healthy initialisation causes
DEPTH = (1e-6, 1e6)  # where the signal may go, relative to its first size


class Weight(Protocol):
    """A weight that was measured and compared with the known schemes."""

    @property
    def view(self) -> View: ...
    @property
    def seen(self) -> Measured: ...
    @property
    def names(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Group:
    """Layers of one type that share a scheme, and those that kept torch's default."""

    scheme: Scheme
    parameters: tuple[str, ...]
    forgotten: tuple[str, ...]


def scheme_of(names: Sequence[str], seen: Measured) -> Scheme | None:
    """The first recognised scheme as the weight's distribution has it."""
    return _schemes.shaped(names[0], seen) if names else None


Members = dict[str, list[Weight]]  # the parts of each parameter


def groups_of(weights: Iterable[Weight], depths: Iterable[int]) -> list[Group]:
    """Types of layers most of which follow one scheme that is not torch's default, while others kept the default."""
    kinds: dict[str, Members] = defaultdict(lambda: defaultdict(list))
    for weight in weights:
        if not weight.seen.is_zero:
            kinds[weight.view.kind][weight.view.parameter].append(weight)
    found = [_group(members, tuple(depths)) for members in kinds.values()]
    return [group for group in found if group is not None]


def _group(members: Members, depths: tuple[int, ...]) -> Group | None:
    """The majority's scheme and who kept the default; a layer that any majority's scheme explains is not accused."""
    default = _following(members, _schemes.DEFAULT)
    majorities = [
        (name, explained)
        for name in (*_schemes.FAMILIES, _schemes.ORTHOGONAL)
        if _is_majority(explained := _following(members, name), default, members)
    ]
    if not majorities:
        std, explained = _constant(members, depths)
        if _is_majority(explained, default, members):
            majorities.append((f"normal({_rounded(std)!r})", explained))
    absolved = set().union(*(explained for _, explained in majorities))
    forgotten = tuple(name for name in members if name in default - absolved)
    if not majorities or not forgotten:
        return None
    name, explained = max(majorities, key=lambda pair: len(pair[1]))
    first = next(members[parameter][0] for parameter in members if parameter in explained - default)
    return Group(_schemes.shaped(name, first.seen), tuple(members), forgotten)


def _following(members: Members, name: str) -> set[str]:
    return {parameter for parameter, parts in members.items() if all(name in part.names for part in parts)}


def _is_majority(explained: set[str], default: set[str], members: Members) -> bool:
    """Layers that both explain say nothing either way."""
    followers, judged = len(explained - default), len(members) - len(explained & default)
    return followers >= AT_LEAST and followers >= MAJORITY * judged


def _constant(members: Members, depths: tuple[int, ...]) -> tuple[float, set[str]]:
    """The std that explains most layers, as it is or divided as in GPT-2; a third of them must have it as it is."""
    common = _common_std(members)
    best: tuple[float, set[str]] = (0.0, set())
    for factor in (1.0, *(math.sqrt(count) for depth in depths for count in (depth, 2 * depth))) if common else ():
        std = factor * (common or 0.0)
        plain, *divided = _schemes.constants(std, depths)
        exactly, all_of = _explained(members, [plain]), _explained(members, [plain, *divided])
        explained = all_of if 3 * len(exactly) >= len(all_of) else exactly
        if len(explained) > len(best[1]):
            best = std, explained
    return best


def _explained(members: Members, schemes: Sequence[Scheme]) -> set[str]:
    tests = sum(map(len, members.values()))
    return {
        parameter
        for parameter, parts in members.items()
        if all(any(scheme.explains(part.view, part.seen, tests=tests) for scheme in schemes) for part in parts)
    }


def _common_std(members: Members) -> float | None:
    """The std most of the larger weights have, within 5 %."""
    stds = [weight.seen.std for parts in members.values() for weight in parts if weight.seen.count >= 64]
    steps = Counter(round(math.log(std) / 0.05) for std in stds if std > 0)
    if not steps:
        return None
    step, _ = steps.most_common(1)[0]
    close = sorted(std for std in stds if std > 0 and abs(math.log(std) / 0.05 - step) <= 1)
    return close[len(close) // 2]


def _rounded(std: float) -> float:
    """The round number somebody wrote: 0.02 for a measured 0.0198."""
    options = [float(f"{std:.{digits}g}") for digits in (1, 2, 3)]
    return next((option for option in options if abs(option / std - 1) < 0.015), options[-1])


def depths_of(model: nn.Module) -> tuple[int, ...]:
    """The number of blocks: the length of the longest list of modules."""
    lists = [len(module) for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    return (max(lists),) if lists and max(lists) > 1 else ()


# --- the signal of the first pass


def signal_findings(model: nn.Module, weights: Sequence[Weight], calls: Sequence[Executed]) -> list[Finding]:
    """What the first pass shows: values that are not finite, a layer that changes the signal, a signal that is lost."""
    born = next((call for call in calls if call.nonfinite), None)
    if born is not None:
        return [_finding(model, born, f"init scale: {born.layer} makes NaN or Inf in the first pass", {})]
    moved = _moved(weights, calls)
    if moved is not None:
        return [_moved_finding(model, *moved)]
    lost = _lost(calls)
    return [] if lost is None else [_lost_finding(model, calls, *lost)]


def _moved(weights: Sequence[Weight], calls: Sequence[Executed]) -> tuple[Executed, Weight, float] | None:
    unexplained = {weight.view.layer: weight for weight in weights if not weight.names}
    last = max((index for index, call in enumerate(calls) if not call.norm), default=0)
    for index, call in enumerate(calls):
        weight = unexplained.get(call.layer)
        if weight is None or not call.rms_in or not call.rms_out:
            continue
        ratio = call.rms_out / call.rms_in
        taken_back = index + 1 < len(calls) and calls[index + 1].norm
        small_head = ratio < 1 and index == last  # a policy's or a regressor's last layer often starts near zero
        if not (1 / FACTOR <= ratio <= FACTOR) and not taken_back and not small_head:
            return call, weight, ratio
    return None


def _lost(calls: Sequence[Executed]) -> tuple[Executed, float] | None:
    """The first call from which on the signal stays far from its first size.

    A branch that starts near zero beside a residual stream, or a normalisation, brings it back. Exact zeros are not
    judged.
    """
    first = next((size for call in calls for size in (call.rms_in, call.rms_out) if size), None)
    lost: Executed | None = None
    for call in calls if first else ():
        if call.rms_in and _within(call.rms_in, first):
            lost = None
        if call.rms_out and not _within(call.rms_out, first):
            lost = lost or call
        elif call.rms_out:
            lost = None
    return None if lost is None or not lost.rms_out or not first else (lost, lost.rms_out / first)


def _within(size: float, first: float | None) -> bool:
    return first is not None and DEPTH[0] <= size / first <= DEPTH[1]


def _moved_finding(model: nn.Module, call: Executed, weight: Weight, ratio: float) -> Finding:
    view, std = weight.view, weight.seen.std
    scheme = _schemes.parse("xavier_uniform")
    usual = scheme.expected(view)[0].std
    evidence = {"parameter": view.parameter, "signal in": call.rms_in, "signal out": call.rms_out}
    cause = f"{view.name} has std {std:.4g}, no known initialisation gives that; xavier would give {usual:.4g}"
    message = f"init scale: {call.layer} changes the signal {ratio:.3g}-fold"
    return _finding(model, call, message, evidence, cause=cause, remedy=scheme.remedy(view))


def _lost_finding(model: nn.Module, calls: Sequence[Executed], call: Executed, ratio: float) -> Finding:
    word = "vanishes" if ratio < 1 else "explodes"
    sizes = [{"layer": item.layer, "rms_in": item.rms_in, "rms_out": item.rms_out} for item in calls]
    at = next(index for index, item in enumerate(calls) if item is call)
    return _finding(
        model,
        call,
        f"init scale: the signal {word} to {ratio:.1e} at {call.layer}",
        {"value": ratio, "table": sizes[max(0, at - 19) : at + 1]},
        cause=f"every layer on the way {'shrinks' if ratio < 1 else 'enlarges'} the signal, and nothing takes it back",
        remedy="initialise for the nonlinearity (kaiming for relu, xavier for tanh) or normalise between the layers",
    )


def _finding(
    model: nn.Module,
    call: Executed,
    message: str,
    evidence: dict[str, Any],
    *,
    cause: str | None = None,
    remedy: str | None = None,
) -> Finding:
    return Finding(
        kind="init-scale",
        message=message,
        phase="init",
        module=call.layer or None,
        source=construction_line(model, call.layer),
        evidence=evidence,
        cause=cause,
        remedy=remedy,
    )
