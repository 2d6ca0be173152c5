"""Judges what stays: parameters, buffers and optimizer state, of the few optimizers that are held for it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from operator import is_
from types import CodeType
from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer

from pytest_nanstab.attribution import constructions, optimizers
from pytest_nanstab.attribution.source import shown, user_frame, user_spot
from pytest_nanstab.findings import Finding
from pytest_nanstab.ranks.sharding import norm_over
from pytest_nanstab.watching import state, torch_private, verdicts
from pytest_nanstab.watching.norms import GradientNorm

if TYPE_CHECKING:
    from pytest_nanstab.watching.region import Region


class _LetGo:
    """In place of the norm of an optimizer that is not held any more; it is held again when it is due."""

    thread = 0

    def fits(self, _groups: object) -> bool:
        """It is not known any more."""
        return False

    def glance(self, _backwards: int) -> bool:
        """It is not."""
        return False

    def seen(self, _backwards: int) -> float | None:
        """Nothing is known without holding it."""
        return None


class StateJudge:
    """The optimizers stepped lately, by strong reference, with their gradient norms by id.

    Attributes:
        norms: by id of each known optimizer; the hot path looks a stepping optimizer up here.
        judged: the last step whose gradients were seen to be finite.
        spot: where the user's code steps the optimizer.
        stepping: the user's function that does.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._held: list[Optimizer] = []
        self._let_go: dict[int, weakref.ref[Optimizer]] = {}
        self._inner: dict[int, weakref.ref[Optimizer]] = {}
        self.norms: dict[int, GradientNorm | _LetGo] = {}
        self.judged = 0
        self.spot: tuple[str, int] | None = None
        self.stepping: CodeType | None = None

    def inner(self, optimizer: Optimizer) -> bool:
        """Whether an unknown optimizer's step is part of another's that is counted (Lookahead, SAM)."""
        known = self._inner.get(id(optimizer))
        if known is not None and known() is optimizer:
            return True
        outer = torch_private.enclosing_step()
        if outer is None or outer is optimizer:
            return False
        around = {id(p) for p in state.parameters_of(outer)}
        if not all(id(p) in around for p in state.parameters_of(optimizer)):
            return False
        self._inner[id(optimizer)] = weakref.ref(optimizer)
        return True

    def hold(self, optimizer: Optimizer) -> GradientNorm:
        """Remember an optimizer that steps; the oldest of more than `state.MAX_HELD` is let go."""
        __tracebackhide__ = True
        norm = self.norms.get(id(optimizer))
        parameters = state.parameters_of(optimizer)
        if isinstance(norm, GradientNorm):
            if len(norm.parameters) == len(parameters) and all(map(is_, norm.parameters, parameters)):
                norm.thread = threading.get_ident()
                return norm
        else:
            self.spot = user_spot(3)
            frame = user_frame(3)
            self.stepping = None if frame is None else frame.f_code
            self._held.append(optimizer)
            if len(self._held) > state.MAX_HELD:
                self._release(self._held.pop(0))
        self._region.names.learn(parameters)
        new = self.norms[id(optimizer)] = norm_over(parameters, optimizer.param_groups)
        new.backwards = norm.backwards if isinstance(norm, GradientNorm) else 0
        new.adopt(self._region.gradients.early)
        return new

    def _release(self, optimizer: Optimizer) -> None:
        """Let an optimizer go; it may die before the end, so it is judged the first time that happens."""
        __tracebackhide__ = True
        key, norms, known = id(optimizer), self.norms, self._let_go.get(id(optimizer))
        norms[key] = _LetGo()
        if known is not None and known() is optimizer:
            return
        self._let_go[key] = weakref.ref(optimizer, partial(norms.pop, key))  # see `Living` for the callback
        self.judge(optimizer)
        self._region.names.unlearn(state.parameters_of(optimizer))

    def known(self) -> Iterator[Optimizer]:
        """The optimizers that are held, the latest first, then those let go that still live."""
        yield from reversed(self._held)
        held = {id(optimizer) for optimizer in self._held}
        for reference in self._let_go.values():
            optimizer = reference()
            if optimizer is not None and id(optimizer) not in held:
                yield optimizer

    def owned(self) -> dict[int, Tensor]:
        """The parameters of all known optimizers, by id."""
        return {id(p): p for optimizer in self.known() for p in state.parameters_of(optimizer)}

    def of_other_threads(self) -> set[int]:
        """The ids of parameters that are stepped in other threads than this."""
        here = threading.get_ident()
        held = [norm for norm in tuple(self.norms.values()) if isinstance(norm, GradientNorm)]
        return {id(p) for norm in held if norm.thread != here for p in norm.parameters}

    def broken(self, step: int) -> Finding | None:
        """A parameter that was non-finite before the coming forward pass, `step` steps being done."""
        for optimizer in self.known():
            tensor = state.bad_parameter(optimizer)
            if tensor is not None:
                return self.parameter_finding(optimizer, tensor, step)
        return None

    def parameter_finding(self, optimizer: Optimizer, tensor: Tensor, step: int) -> Finding:
        """The finding about a non-finite parameter; with sampled gradients it says from which step on it may be."""
        region = self._region
        sampled = not region.options.dense and self.judged + 1 < step
        extra = {"step_range": [self.judged + 1, step]} if sampled else {}
        name = region.names.label(optimizer, tensor)
        later = sampled or step < region.run.steps
        finding = verdicts.parameter(step, name, tensor, optimizer, self.spot, later=later, **extra)
        # The gradients of that step were seen to be finite: the optimizer's own arithmetic did it.
        story = optimizers.suspect(optimizer, tensor) if 0 < self.judged == step else None
        if story is None or finding.cause is not None:
            return finding
        spot = constructions.line_of(optimizer) or self.spot
        return replace(finding, cause=story.cause, remedy=story.remedy, op=type(optimizer).__name__, source=shown(spot))

    def carried(self, step: int, tensor: Tensor, name: str, spot: tuple[str, int] | None) -> Finding:
        """The finding about a non-finite parameter that a module carried into its call."""
        for optimizer in self.known():
            if any(p is tensor for p in state.parameters_of(optimizer)):
                return self.parameter_finding(optimizer, tensor, step)
        return verdicts.parameter(step, name, tensor, None, spot)

    def after_step(self, optimizer: Optimizer) -> None:
        """Judge everything a step may have broken, right after it."""
        __tracebackhide__ = True
        self.spot = user_spot(2)
        self.judge(optimizer)
        self.judge_buffers()

    def judge(self, optimizer: Optimizer) -> None:
        """Judge an optimizer's parameters, then its state."""
        __tracebackhide__ = True
        region = self._region
        tensor = state.bad_parameter(optimizer)
        if tensor is not None:
            region.report(self.parameter_finding(optimizer, tensor, region.run.steps), region.behind(tensor))
            return
        found = state.bad_state(optimizer)
        if found is not None:
            parameter, key, tensor = found
            name = region.names.label(optimizer, parameter) if parameter is not None else "the optimizer"
            steps = region.run.steps
            finding = verdicts.optimizer_state(
                steps, name, key, tensor, optimizer=optimizer, parameter=parameter, spot=self.spot
            )
            region.report(finding, region.behind(tensor))

    def judge_buffers(self) -> None:
        """Judge the buffers of all modules seen that were written to."""
        __tracebackhide__ = True
        region = self._region
        found = region.names.bad_buffer()
        if found is not None:
            name, tensor = found
            region.report(verdicts.buffer(region.run.steps, name, tensor, self.spot), region.behind(tensor))

    def judge_all(self) -> None:
        """Judge every known optimizer and all buffers."""
        __tracebackhide__ = True
        for optimizer in list(self.known()):
            self.judge(optimizer)
        self.judge_buffers()

    def disown_broken(self) -> None:
        """An inner watch has reported what is broken now: let go of it until it steps again."""
        for optimizer in list(self.known()):
            if state.bad_parameter(optimizer) is not None or state.bad_state(optimizer) is not None:
                self._held = [held for held in self._held if held is not optimizer]
                self._let_go.pop(id(optimizer), None)
                self.norms.pop(id(optimizer), None)
        self._region.names.accept_buffers()

    def forget(self) -> None:
        """Drop every reference to the user's objects."""
        self._held.clear()
        self._let_go.clear()
        self._inner.clear()
        self.norms.clear()
