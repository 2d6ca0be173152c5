"""What each clip call of the user's came to over a whole run: how often it changed anything, and for whom."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType

import torch
from torch import Tensor

from pytest_nanstab.attribution.source import shown
from pytest_nanstab.watching import measure, torch_private
from pytest_nanstab.watching.clips import Clip

# So many calls make "always" and "never" worth a note.
ENOUGH = 10
_SAMPLED = 4
_FUNCTIONS = ("clip_grad_norm_", "clip_grad_value_", "clip_grad_norm")
Spot = tuple[str, int] | None


@dataclass(eq=False)
class Tally:
    """All calls of one clipping function at one line.

    Attributes:
        first: the first of them.
        calls: how many there were.
        active: how many changed a gradient; None as soon as that is not known of one.
        taken: how many an optimizer stepped with afterwards.
        early: how many ran before the last backward of their step, whose gradients they have not clipped.
        empty: how many saw no gradient at all.
        covered: the most parameters of one optimizer that a call covered, of how many that have a gradient.
        norms: the smallest and the largest norm before the call.
        followed: how many were followed by a step, of whatever parameters, before the next.
        after_step: the first call came after an optimizer step.
    """

    first: Clip
    after_step: bool
    calls: int = 0
    active: int | None = 0
    taken: int = 0
    early: int = 0
    empty: int = 0
    covered: tuple[int, int] | None = None
    norms: tuple[float, float] | None = None
    followed: int = 0
    _waits: bool = False
    _marks: list[tuple[weakref.ref[Tensor], float | None]] = field(default_factory=list)

    def add(self, clip: Clip, *, active: bool | None) -> None:
        """Count a call."""
        self.calls += 1
        self._waits = True
        self.empty += not clip.gradients
        self.active = None if active is None or self.active is None else self.active + active
        if clip.raw is not None:
            low, high = self.norms or (clip.raw, clip.raw)
            self.norms = min(low, clip.raw), max(high, clip.raw)

    def stepped(self) -> None:
        """An optimizer steps."""
        self.followed += self._waits
        self._waits = False

    def mark(self, parameters: Sequence[Tensor]) -> None:
        """Remember some parameters as they are, to see whether anybody steps them."""
        self._marks = [(weakref.ref(p), _sum(p)) for p in parameters[:_SAMPLED]]

    @property
    def moved(self) -> bool:
        """Whether one of the clipped parameters has changed since, by whatever hand, or none can be read."""
        known = [(reference(), before) for reference, before in self._marks if before is not None]
        return not known or any(p is None or _sum(p) != before for p, before in known)

    def notes(self) -> Iterator[str]:
        """What is worth knowing about the calls."""
        clip = self.first
        place = shown(clip.spot)
        name = f"{clip.function}({clip.bound:g})" + (f" at {place}" if place else "")
        norms = "" if self.norms is None else f", norms {self.norms[0]:.3g} to {self.norms[1]:.3g}"
        if self.early:
            times = f"{self.early} of {self.calls} calls"
            yield f"{name} ran before the last backward of its step in {times}: what that added was not clipped"
        if self.covered is not None and self.covered[0] < self.covered[1]:
            yield f"{name} covers {self.covered[0]} of {self.covered[1]} parameters that its optimizer steps"
        if self.calls < ENOUGH or self.active is None or not self.taken or math.isinf(clip.bound):
            return  # an infinite bound only reads the norm
        if self.active == self.calls:
            yield f"{name} was active at all {self.calls} calls{norms}: the bound, not the gradient, sets the step"
        elif not self.active:
            yield f"{name} was never active in {self.calls} calls{norms}"


class Tallies:
    """The tallies of a run, by line."""

    def __init__(self) -> None:
        self._by_spot: dict[tuple[str, Spot], Tally] = {}

    def add(self, clip: Clip, *, active: bool | None, after_step: bool) -> None:
        """Count a call that has run."""
        tally = self._of(clip)
        if tally is None:
            tally = self._by_spot[clip.function, clip.spot] = Tally(clip, after_step)
            tally.mark(clip.parameters)
        tally.add(clip, active=active)

    def _of(self, clip: Clip) -> Tally | None:
        return self._by_spot.get((clip.function, clip.spot))

    def first(self, clip: Clip) -> Clip:
        """The first call at the clip's line."""
        tally = self._of(clip)
        return clip if tally is None else tally.first

    def after_step(self, clip: Clip) -> bool:
        """Whether the first call at the clip's line came after a step."""
        tally = self._of(clip)
        return tally is not None and tally.after_step

    def taken(self, clips: Sequence[Clip], parameters: Sequence[Tensor], backwards: int) -> None:
        """An optimizer steps with gradients that these calls concern."""
        for known in self._by_spot.values():
            known.stepped()
        stepped = {id(p) for p in parameters if p.grad is not None}
        covered = {id(p) for clip in clips for p in clip.parameters} & stepped
        for clip in clips:
            tally = self._of(clip)
            if tally is None:
                continue
            tally.taken += 1
            tally.early += clip.backwards < backwards and clip.survives
            if tally.covered is None or len(covered) > tally.covered[0]:
                tally.covered = len(covered), len(stepped)

    def __bool__(self) -> bool:
        return bool(self._by_spot)

    def notes(self) -> list[str]:
        """All notes, in order of the first calls."""
        return [note for tally in self._by_spot.values() for note in tally.notes()]

    def useless(self) -> Tally | None:
        """Calls none of which can have shaped a step, where no other line's did either.

        Over parameters that nobody has stepped, by an optimizer or by hand, or none of which ever had a gradient. Calls
        that no steps follow belong to none.
        """
        tallies = [tally for tally in self._by_spot.values() if tally.first.parameters and not tally.first.only_reads]
        if any(tally.taken and tally.calls > tally.empty for tally in tallies):
            return None
        for tally in tallies:
            idle = tally.calls == tally.empty
            if tally.followed > 1 and (idle or not (tally.taken or tally.moved)):
                return tally
        return None


def unreached_clips(code: CodeType | None) -> list[str]:
    """A note for each clipping function that a function of the user's names, given that none was called."""
    names = () if code is None else code.co_names
    where = "" if code is None else f"{code.co_name}() at {shown((code.co_filename, code.co_firstlineno))}"
    return [f"{name} stands in {where} and was never reached" for name in names if name in _FUNCTIONS]


def _sum(parameter: Tensor) -> float | None:
    with torch_private.unseen():
        values = measure.plain(parameter)
        return None if values is None else float(torch.sum(values, dtype=torch.float64))
