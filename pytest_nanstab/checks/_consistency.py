"""Judging a model by itself: layers left out of what the others follow."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from pytest_nanstab.checks import _schemes
from pytest_nanstab.checks._schemes import Scheme
from pytest_nanstab.checks._spread import Measured
from pytest_nanstab.checks._weights import View

HEALTHY = frozenset({"ok", "default (ok)", "not judged", "note"})
MAJORITY, AT_LEAST = 0.6, 3  # of a type, before the rest counts as forgotten


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
        if (
            _is_majority(explained, default, members)
            and _is_round(std)
            and not _is_backbone(members, explained, default)
        ):
            majorities.append((f"normal({_rounded(std)!r})", explained))
    absolved = set().union(*(explained for _, explained in majorities))
    forgotten = tuple(name for name in members if name in default - absolved)
    if not majorities or not forgotten:
        return None
    name, explained = max(majorities, key=lambda pair: len(pair[1]))
    shapes = Counter(part.seen.kurtosis for parameter in explained - default for part in members[parameter])
    kurtosis = shapes.most_common(1)[0][0]
    first = next(
        part.seen
        for parameter in members
        for part in members[parameter]
        if parameter in explained - default and part.seen.kurtosis == kurtosis
    )
    return Group(_schemes.shaped(name, first), tuple(members), forgotten)


def _is_backbone(members: Members, explained: set[str], default: set[str]) -> bool:
    """Whether two or more layers kept the default and all of the others, of one constant std, come after them: heads
    are often given 0.01 or 0.001 (Lin et al. 2017, "Focal Loss", section 4.1)."""
    order = list(members)
    kept = [order.index(name) for name in default - explained]
    return len(kept) > 1 and max(kept) < min((order.index(name) for name in explained - default), default=0)


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


def _is_round(std: float) -> bool:
    """Whether somebody may have written this std, or the bound of this uniform distribution: 0.02, 0.1, 0.05."""
    return any(abs(float(f"{value:.1g}") / value - 1) < 0.015 for value in (std, std * math.sqrt(3)))


def _rounded(std: float) -> float:
    """The round number somebody wrote: 0.02 for a measured 0.0198."""
    options = [float(f"{std:.{digits}g}") for digits in (1, 2, 3)]
    return next((option for option in options if abs(option / std - 1) < 0.015), options[-1])


def depths_of(model: nn.Module) -> tuple[int, ...]:
    """The number of blocks: the length of the longest list of modules."""
    lists = [len(module) for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    return (max(lists),) if lists and max(lists) > 1 else ()
