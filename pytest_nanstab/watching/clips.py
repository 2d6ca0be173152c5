"""Gradient clipping: what each call saw, and what the optimizer made of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.attribution.source import user_spot

# clip_grad_norm_ scales by max_norm / (total_norm + 1e-6), at most 1 (torch.nn.utils.clip_grad).
_CLIP_EPS = 1e-6


@dataclass
class Clip:
    """One call of a clipping function.

    `raw` is the L2 norm of the clipped parameters' gradients before the call and `bound` the largest norm it left;
    both are None where they are not known (value clips, other norms). `survives` turns True when a later backward
    adds to the clipped gradients, as in an accumulation loop. `scale` is the loss scale that was still on the
    gradients, and `unscaled_later` tells that GradScaler took it off after the clip.
    """

    parameters: Sequence[Tensor]
    gradients: int
    backwards: int
    by_norm: bool
    max_norm: float
    raw: float | None
    scale: float | None
    spot: tuple[str, int] | None
    survives: bool = False
    unscaled_later: bool = False

    @property
    def kept(self) -> float:
        """The factor by which the call scaled the gradients."""
        if self.raw is None or not math.isfinite(self.raw):
            return 1.0
        return min(1.0, self.max_norm / (self.raw + _CLIP_EPS))


def as_list(parameters: Any) -> tuple[Any, list[Tensor]]:
    """What to hand on to torch, and the parameters as a list, without using up a generator.

    torch warns about an empty generator; so an exhausted one is handed on as it is.
    """
    if isinstance(parameters, Tensor):
        return parameters, [parameters]
    if isinstance(parameters, (list, tuple)):
        return parameters, list(parameters)
    listed = list(parameters)
    return (listed or parameters), listed


class Clips:
    """The clipping calls since the last optimizer step."""

    def __init__(self) -> None:
        self.calls: list[Clip] = []
        self._last_step: dict[int, int] = {}  # id(optimizer) -> backward calls when it last stepped

    def add(
        self,
        parameters: list[Tensor],
        raw: float | None,
        max_norm: float,
        by_norm: bool,
        state: tuple[int, float | None],
    ) -> None:
        """Record a call; `state` is (backward calls so far, the loss scale still on the gradients)."""
        backwards, scale = state
        present = sum(p.grad is not None for p in parameters)
        self.calls.append(Clip(parameters, present, backwards, by_norm, max_norm, raw, scale, user_spot(2)))

    def unscaled(self, parameters: set[int]) -> None:
        """GradScaler has unscaled the gradients of these parameters (by id)."""
        for clip in self.calls:
            if clip.scale is not None and any(id(p) in parameters for p in clip.parameters):
                clip.unscaled_later = True

    def before_backward(self) -> None:
        """Note which clipped gradients are still there for the coming backward to add to."""
        for clip in self.calls:
            if not clip.survives and clip.gradients:
                clip.survives = any(_holds_something(p.grad) for p in clip.parameters)

    def take(self, parameters: Sequence[Tensor]) -> list[Clip]:
        """The calls that concern an optimizer about to step; they are forgotten once each of them was asked for."""
        mine = {id(p) for p in parameters}
        concerned = [clip for clip in self.calls if any(id(p) in mine for p in clip.parameters) or not clip.parameters]
        self.calls = [
            clip for clip in self.calls if clip not in concerned or any(id(p) not in mine for p in clip.parameters)
        ]
        return concerned

    def stepped(self, optimizer: Any, backwards: int) -> None:
        """An optimizer steps after so many backward calls."""
        self._last_step[id(optimizer)] = backwards

    def without_effect(self, clip: Clip, optimizer: Any, backwards: int) -> bool:
        """Whether this step proves that the clip touched none of the gradients the optimizer receives.

        It ran before the backward that made them, and either saw no gradient at all or only stale ones that were
        cleared before that backward. In an accumulation loop the clipped gradients survive, and the clip has an effect.
        """
        if clip.backwards >= backwards:
            return not clip.gradients and not clip.parameters
        before = self._last_step.get(id(optimizer), 0)
        return not clip.survives and (clip.gradients == 0 or clip.backwards <= before)


def _holds_something(gradient: Tensor | None) -> bool:
    if gradient is None:
        return False
    with torch.no_grad():
        return bool(torch.count_nonzero(gradient if not gradient.is_sparse else gradient.coalesce().values()))


def norms_at_step(clips: Iterable[Clip], parameters: Sequence[Tensor], received: float) -> float | None:
    """The raw L2 norm of an optimizer's gradients, from the norm it received and the clips before it.

    Undoes each clip by norm on the share of the gradients it covered. None where a clip cannot be undone (by value,
    or by another norm).
    """
    mine = {id(p) for p in parameters}
    squared = received**2
    for clip in clips:
        if clip.raw is None:
            return None
        theirs = {id(p) for p in clip.parameters}
        if mine <= theirs:
            squared = squared / clip.kept**2 if clip.kept > 0 else math.inf
        elif theirs <= mine:
            squared += clip.raw**2 - (clip.raw * clip.kept) ** 2
        else:
            return None
    return math.sqrt(squared) if squared >= 0 else None
