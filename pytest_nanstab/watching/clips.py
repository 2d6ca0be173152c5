"""Gradient clipping: what each call saw, and what the optimizer made of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.watching import measure, torch_private
from pytest_nanstab.watching.norms import global_norm, gradient_state

# clip_grad_norm_ scales by max_norm / (total_norm + 1e-6), at most 1 (torch.nn.utils.clip_grad).
_CLIP_EPS = 1e-6
# Calls that no optimizer asks for are kept up to this number.
_KEPT_CALLS = 31
# A bound nobody means to reach.
_READS_ONLY = 1e6
# People clip at 10 or less. A bound that is multiplied by the scale as well is larger, or a fair part of the scale.
_USUAL_BOUND, _FAIR_PART, _LEAST_PART = 10.0, 0.05, 0.001


@dataclass(eq=False)
class Clip:
    """One call of a clipping function.

    `raw` is the L2 norm of the clipped parameters' gradients before the call and `kept` the factor by which it scaled
    them; both are None where they are not known (`raw` of other norms, `kept` of clips by value). `gradients` counts
    the parameters that had one. `survives` turns True when a later backward adds to the clipped gradients, as in an
    accumulation loop. `scale` is the loss scale that was on the gradients, and `unscaled_later` tells that it was taken
    off only after the clip.
    """

    function: str
    parameters: Sequence[Tensor]
    bound: float
    raw: float | None
    kept: float | None
    backwards: int
    scale: float | None
    spot: tuple[str, int] | None
    gradients: int = field(init=False)
    survives: bool = False
    unscaled_later: bool = False
    taken_by: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.gradients = sum(p.grad is not None for p in self.parameters)
        self.refresh()

    @property
    def only_reads(self) -> bool:
        """Whether nothing was to be clipped: the call is there for the norm that it returns."""
        return self.bound >= _READS_ONLY * (self.scale or 1.0)

    def ignores_scale(self, first: Clip) -> bool:
        """Whether its bound was meant for gradients without the loss scale; `first` is the first call at the line.

        A bound may be multiplied by the scale as well. It is not where too little would be left of it without the
        scale, or where it stays while the scale changes.
        """
        if self.scale is None or not self.unscaled_later or self.only_reads:
            return False
        part = self.bound / self.scale
        if part < _LEAST_PART or (part < _FAIR_PART and self.bound <= _USUAL_BOUND):
            return True
        return self.bound == first.bound and self.scale != first.scale

    def refresh(self) -> None:
        """Take the gradients as they are now for what the call left."""
        self._state = gradient_state(self.parameters)

    def untouched(self) -> bool:
        """Whether the gradients are still what the call, and clips after it, left."""
        return self._state == gradient_state(self.parameters)


def factor(total: float, bound: float) -> float:
    """What `clip_grad_norm_` multiplies the gradients by."""
    return 1.0 if math.isnan(total) else min(1.0, bound / (total + _CLIP_EPS))


def as_list(parameters: Any) -> tuple[Any, list[Tensor] | None]:
    """What to hand on to torch, and the parameters as a list, without using up a generator.

    The list is None when there is nothing to clip and nothing wrong with that; it is empty for a generator that was
    used up before. torch warns about an empty generator; so that is handed on as it is.
    """
    if isinstance(parameters, Tensor):
        return parameters, [parameters]
    if isinstance(parameters, (list, tuple)):
        return parameters, list(parameters) or None
    # A filter or map does not tell whether it was empty from the start: then nothing has a gradient, and no step proves
    # anything against it.
    used_up = parameters.gi_frame is None if isinstance(parameters, GeneratorType) else isinstance(parameters, Iterator)
    listed = list(parameters)
    return (listed or parameters), listed if listed or used_up else None


class Clips:
    """The clipping calls since the last optimizer step."""

    def __init__(self) -> None:
        self.calls: list[Clip] = []
        self._followed: list[Clip] = []

    @torch_private.past_modes
    def coming(self) -> None:
        """Another call is about to write to the gradients; what earlier ones left is still known after it."""
        self._followed = [clip for clip in self.calls if clip.untouched()]

    def add(self, clip: Clip) -> None:
        """Record a call that has run."""
        for earlier in self._followed:
            earlier.refresh()
        self._followed = []
        self.calls = [*self.calls[-_KEPT_CALLS:], clip]

    def unscaled(self, parameters: set[int]) -> None:
        """The loss scale is taken off the gradients of these parameters (by id)."""
        for clip in self.calls:
            if clip.scale is not None and any(id(p) in parameters for p in clip.parameters):
                clip.unscaled_later = True

    @torch_private.past_modes
    def before_backward(self, backwards: int) -> None:
        """Note which clipped gradients are still there for the coming backward, the next after so many, to add to."""
        for clip in self.calls:
            if clip.backwards == backwards and clip.gradients:
                clip.survives = any(_holds_something(p.grad) for p in clip.parameters)

    def take(self, optimizer: Any, parameters: Sequence[Tensor]) -> list[Clip]:
        """The calls that concern an optimizer about to step.

        A call stays for other optimizers that share it until one that has taken it comes again.
        """
        mine, key = {id(p) for p in parameters}, id(optimizer)
        calls = [clip for clip in self.calls if key not in clip.taken_by]
        concerned = [clip for clip in calls if any(id(p) in mine for p in clip.parameters) or not clip.parameters]
        for clip in concerned:
            clip.taken_by.add(key)
        self.calls = [
            clip for clip in calls if key not in clip.taken_by or any(id(p) not in mine for p in clip.parameters)
        ]
        return concerned

    def saw_nonfinite(self, parameters: set[int]) -> bool:
        """Whether a clip of any of these (by id) returned a norm that is not finite, for its caller to see."""
        seen = [clip for clip in self.calls if any(id(p) in parameters for p in clip.parameters)]
        return any(clip.raw is not None and not math.isfinite(clip.raw) for clip in seen)

    def forget(self, parameters: Sequence[Tensor]) -> None:
        """A step over these parameters was left out."""
        mine = {id(p) for p in parameters}
        self.calls = [clip for clip in self.calls if not any(id(p) in mine for p in clip.parameters)]


def without_effect(clip: Clip, backwards: int, before: int, parameters: Sequence[Tensor]) -> bool:
    """Whether a step proves that the clip touched none of the gradients the optimizer receives.

    It ran before the backward that made them, and either saw no gradient at all or only stale ones that were cleared
    before that backward. In an accumulation loop the clipped gradients survive, and the clip has an effect. `backwards`
    counts backward calls up to now, `before` those up to the optimizer's last step.
    """
    if clip.only_reads:
        return False
    if not clip.parameters:
        return clip.backwards == backwards
    mine = {id(p) for p in parameters}
    if clip.backwards >= backwards or not any(p.grad is not None for p in clip.parameters if id(p) in mine):
        return False
    return not clip.survives and (clip.gradients == 0 or clip.backwards <= before)


def _holds_something(gradient: Tensor | None) -> bool:
    values = None if gradient is None else measure.plain(gradient)
    return values is not None and bool(torch.count_nonzero(values))


def raw_norm(clips: Sequence[Clip], parameters: Sequence[Tensor], received: float) -> float | None:
    """The L2 norm of an optimizer's gradients before `clips`, from the norm it received.

    None where the clips cannot be undone: by value over more parameters than the optimizer's, or overlapping.
    """
    mine = {id(p) for p in parameters}
    theirs = [{id(p) for p in clip.parameters} for clip in clips]
    if clips and theirs[0] == mine and clips[0].raw is not None:
        return clips[0].raw
    if all(mine <= ids for ids in theirs):
        kept = [clip.kept for clip in clips]
        product = math.prod(k for k in kept if k is not None)
        return None if None in kept or product == 0 else received / product
    if all(ids <= mine for ids in theirs) and len(set().union(*theirs)) == sum(map(len, theirs)):
        return _undo_parts(clips, received)
    return None


def _undo_parts(clips: Sequence[Clip], received: float) -> float | None:
    """The same for clips over separate parts of the optimizer's parameters."""
    squared = received**2
    for clip in clips:
        now = global_norm([p.grad for p in clip.parameters if p.grad is not None])
        raw = clip.raw if clip.raw is not None or not clip.kept or now is None else now / clip.kept
        if raw is None or now is None:
            return None
        squared += raw**2 - now**2
    return math.sqrt(squared) if squared >= 0 else None
