"""Parameters that should be equal on all ranks and are not.

Which should be: what `DistributedDataParallel` wraps, copies of a DTensor, and whatever the ranks treat as one: the
gradients that they see are equal, or were made so for most of the parameters of the same optimizer while they began
with the same numbers. Ranks that train models of their own are left alone.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.findings import Finding
from pytest_nanstab.ranks.prints import Print, are_equal, digest, fingerprint
from pytest_nanstab.ranks.sharding import is_sharded, ranks_label, shard_label, shards

_LOOKS = 2  # steps at which gradients are compared
_SHARE = 0.5  # of the parameters whose gradients must be equal for the ranks to train one model


@dataclass
class Seen:
    """One parameter of a stepping optimizer, or the part of it on this rank.

    Attributes:
        began: its print before its first step.
        gradients: those of its gradients at its first steps.
        ended: the print at the end.
        elements: how many numbers it has here.
        eps: the spacing of its format at 1.
        tied: why it must be equal on all ranks; None where that is to be found out.
    """

    began: Print | None
    gradients: list[Print | None] = field(default_factory=list)
    ended: Print | None = None
    elements: int = 0
    eps: float = 0.0
    tied: str | None = None


class Parameters:
    """The prints of what this rank's optimizers have stepped."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}
        self._names: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._counts: Counter[str] = Counter()
        self._excused = False  # the ranks part on purpose

    def stepping(self, parameters: Sequence[Tensor], name_of: Callable[[Tensor], str]) -> None:
        """Take prints before one of an optimizer's first steps; later ones cost next to nothing."""
        if parameters and len(getattr(self._of(parameters[0]), "gradients", ())) >= _LOOKS:
            return
        whole = [p for p in parameters if p.grad is not None and p.is_floating_point() and _has_copies(p)]
        if any(self._of(parameter) is None for parameter in whole):
            self._begin_all(whole, name_of)
        for parameter in whole:
            seen = self._of(parameter)
            if seen is not None:
                seen.gradients.append(fingerprint(parameter.grad))

    def _begin_all(self, parameters: Sequence[Tensor], name_of: Callable[[Tensor], str]) -> None:
        """Take the first prints; the wrapper around a model may be gone at the end of a test."""
        wrapped, excused = _data_parallel()
        self._excused = self._excused or excused
        for parameter in parameters:
            if self._of(parameter) is None:
                label = shard_label(parameter) + wrapped.get(id(parameter), "")
                seen = self._begin(parameter, name_of(parameter) + label)
                if id(parameter) in wrapped:
                    seen.tied = "wrapped in DistributedDataParallel"

    def _begin(self, parameter: Tensor, name: str) -> Seen:
        self._counts[name] += 1
        name = f"{name} #{self._counts[name]}" if self._counts[name] > 1 else name
        self._names[id(parameter)] = (weakref.ref(parameter), name)
        tied = "a copy of a distributed tensor" if is_sharded(parameter) else None
        eps = torch.finfo(parameter.dtype).eps
        seen = self._seen[name] = Seen(fingerprint(parameter), elements=parameter.numel(), eps=eps, tied=tied)
        return seen

    def _of(self, parameter: Tensor) -> Seen | None:
        reference, name = self._names.get(id(parameter), (None, ""))
        return self._seen[name] if reference is not None and reference() is parameter else None

    def finish(self) -> None:
        """Take the prints at the end, of the parameters that are still alive."""
        for parameter, seen in self._alive():
            seen.ended = fingerprint(parameter)

    def _alive(self) -> Iterator[tuple[Tensor, Seen]]:
        for reference, name in self._names.values():
            parameter = reference()
            if parameter is not None:
                yield parameter, self._seen[name]

    def digest(self) -> str:
        """What is equal on all ranks as long as they have not parted."""
        return digest({name: seen.ended for name, seen in self._seen.items()})

    def details(self) -> dict[str, Any]:
        """Everything, for the exchange that follows when they have."""
        return {} if self._excused else {name: vars(seen) for name, seen in self._seen.items()}


def _has_copies(parameter: Tensor) -> bool:
    """Whether another rank may hold the same numbers: a tensor that is cut along all of its mesh has no copies."""
    return not is_sharded(parameter) or shards(parameter) < parameter.device_mesh.size()  # type: ignore[attr-defined]


def _data_parallel() -> tuple[dict[int, str], bool]:
    """What DistributedDataParallel keeps equal: among which ranks, by the ids of the parameters, and whether
    one lets them part on purpose."""
    from torch.nn.parallel import DistributedDataParallel

    wrapped: dict[int, str] = {}
    for obj in gc.get_objects():
        if not issubclass(type(obj), DistributedDataParallel):
            continue
        hooks = [getattr(hook, "__qualname__", "") for hook, *_ in getattr(obj, "_comm_hooks", ())]
        if any("localsgd" in name.lower().replace("_", "") for name in hooks):
            return {}, True
        ignored = getattr(obj, "parameters_to_ignore", ())
        among = ranks_label(torch.distributed.get_process_group_ranks(obj.process_group))
        kept = [p for name, p in obj.module.named_parameters() if name not in ignored and p.requires_grad]
        wrapped |= {id(parameter): among for parameter in kept}
    return wrapped, False


# -- the judgement -----------------------------------------------------------------------------------------------------


@dataclass
class _Everywhere:
    """One parameter as all the ranks that have it saw it."""

    name: str
    by_rank: Mapping[int, Mapping[str, Any]]

    def equal(self, field_name: str, index: int | None = None) -> bool:
        """Whether its prints of one time agree."""
        prints = [self._print(seen, field_name, index) for seen in self.by_rank.values()]
        known = [tuple(p) for p in prints if p is not None]
        first = next(iter(self.by_rank.values()))
        return len(known) == len(prints) and are_equal(known, elements=first["elements"], eps=first["eps"])

    def _print(self, seen: Mapping[str, Any], field_name: str, index: int | None) -> Any:
        value = seen[field_name]
        if index is None:
            return value
        return value[index] if index < len(value) else None

    @property
    def is_known(self) -> bool:
        """Whether several ranks have its last print."""
        return len(self.by_rank) > 1 and all(seen["ended"] is not None for seen in self.by_rank.values())

    @property
    def gradients_equal(self) -> bool:
        """Whether its gradients were equal, and not nothing, at every look."""
        looks = {len(seen["gradients"]) for seen in self.by_rank.values()}
        first = next(iter(self.by_rank.values()))["gradients"]
        some = any(print_ is not None and print_[1] > 0 for print_ in first)
        return len(looks) == 1 and some and all(self.equal("gradients", index) for index in range(len(first)))

    @property
    def gradients_move(self) -> bool:
        """Whether its gradients differ between steps: constants are equal everywhere."""
        first = next(iter(self.by_rank.values()))["gradients"]
        return len(first) > 1 and tuple(first[0] or ()) != tuple(first[1] or ())

    @property
    def tied(self) -> str | None:
        """Why it must be equal, where that is known."""
        reason: str | None = next(iter(self.by_rank.values()))["tied"]
        return reason

    @property
    def sizes(self) -> dict[int, float]:
        """Its norm on each rank."""
        return {rank: seen["ended"][1] for rank, seen in self.by_rank.items()}


def drifted(told: Mapping[int, Mapping[str, Any]], *, step: int, source: str | None) -> Finding | None:
    """The finding about the parameters that have parted; `told` is what each rank knows of each parameter."""
    names = dict.fromkeys(name for known in told.values() for name in known)
    every = [_Everywhere(name, {rank: known[name] for rank, known in told.items() if name in known}) for name in names]
    every = [one for one in every if one.is_known]
    shared = [one for one in every if one.gradients_equal]
    is_one_model = len(shared) >= _SHARE * len(every)
    parted = [one for one in every if not one.equal("ended")]
    guilty = [one for one in parted if _must_be_equal(one, is_one_model)]
    return _finding(guilty, len(every), step, source) if guilty else None


def _must_be_equal(one: _Everywhere, is_one_model: bool) -> bool:
    if one.tied is not None:
        return True
    if one.gradients_equal:
        return is_one_model and (one.equal("began") or one.gradients_move)
    return is_one_model and one.equal("began")


def _finding(guilty: Sequence[_Everywhere], known: int, step: int, source: str | None) -> Finding:
    first = guilty[0]
    cause, remedy = _story(first)
    norms = ", ".join(f"rank {rank}: {size:.9g}" for rank, size in first.sizes.items())
    others = f" and {len(guilty) - 1} more" if len(guilty) > 1 else ""
    return Finding(
        kind="rank-drift",
        message=f"{first.name}{others} differ{'' if others else 's'} between ranks after step {step}",
        step=step,
        phase="optimizer",
        module=first.name,
        source=source,
        evidence={
            "parameter": first.name,
            "norms": norms,
            "drifted": f"{len(guilty)} of {known} parameters",
            **({"tied": f"it is {first.tied}"} if first.tied else {}),
        },
        cause=cause,
        remedy=remedy,
    )


def _story(one: _Everywhere) -> tuple[str, str]:
    """(cause, remedy), from when the ranks parted."""
    if not one.equal("began"):
        return (
            "the ranks began with different numbers, and averaged gradients keep them apart",
            "wrap the model in DistributedDataParallel, which copies rank 0's parameters to all, or broadcast each of "
            "them before training",
        )
    if one.gradients_equal:
        return (
            "the ranks began with the same numbers and had the same gradients at first: something on one of them "
            "differs later (a learning rate, a skipped or additional step, a write to the parameter)",
            "take every step, and every decision to skip one, on all ranks alike",
        )
    if one.tied is not None and "DistributedDataParallel" in one.tied:
        return (
            "its gradient is not averaged over the ranks: the forward pass went past DistributedDataParallel (it calls "
            "`model.module`), or ran under `no_sync()`",
            "call the DistributedDataParallel model itself, and leave `no_sync()` before the last backward of a step",
        )
    return (
        "its gradient is not averaged over the ranks, while those of the other parameters are",
        "average it like theirs: dist.all_reduce(p.grad) / world size for every parameter that is stepped; if each "
        "rank is to have its own, let them begin with different numbers (seed by rank)",
    )
