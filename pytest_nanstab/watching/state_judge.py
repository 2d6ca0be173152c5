"""Judges what stays: parameters, buffers and optimizer state, of the few optimizers that are held for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer

from pytest_nanstab.attribution.source import user_spot
from pytest_nanstab.findings import Finding
from pytest_nanstab.watching import state, verdicts
from pytest_nanstab.watching.norms import GradientNorm

if TYPE_CHECKING:
    from pytest_nanstab.watching.region import Region


class StateJudge:
    """The optimizers stepped lately, by strong reference, with their gradient norms by id.

    Attributes:
        norms: by id of each held optimizer; the hot path looks a stepping optimizer up here.
        judged: the last step whose gradients were seen to be finite.
        spot: where the user's code steps the optimizer.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._held: list[Optimizer] = []
        self.norms: dict[int, GradientNorm] = {}
        self.judged = 0
        self.spot: tuple[str, int] | None = None

    def hold(self, optimizer: Optimizer) -> GradientNorm:
        """Remember an optimizer that steps; the oldest of more than `state.MAX_HELD` is judged and let go."""
        __tracebackhide__ = True
        norm = self.norms.get(id(optimizer))
        if norm is None:
            self.spot = user_spot(3)
            self._held.append(optimizer)
            if len(self._held) > state.MAX_HELD:
                oldest = self._held.pop(0)
                del self.norms[id(oldest)]
                self.judge(oldest)
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        if norm is None or count != len(norm.parameters):
            norm = self.norms[id(optimizer)] = GradientNorm(state.parameters_of(optimizer))
        return norm

    def parameters_of(self, optimizer: Optimizer) -> list[Tensor]:
        """All parameters of an optimizer, held or not."""
        norm = self.norms.get(id(optimizer))
        return state.parameters_of(optimizer) if norm is None else norm.parameters

    def owns(self, leaves: list[Tensor]) -> bool:
        """Whether a held optimizer has stepped one of these tensors."""
        mine = {id(p) for norm in self.norms.values() for p in norm.parameters}
        return any(id(leaf) in mine for leaf in leaves)

    def broken(self, step: int) -> Finding | None:
        """A parameter that was non-finite before the coming forward pass, `step` steps being done."""
        for optimizer in reversed(self._held):
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
        return verdicts.parameter(step, name, tensor, optimizer, self.spot, **extra)

    def carried(self, step: int, tensor: Tensor, name: str, spot: tuple[str, int] | None) -> Finding:
        """The finding about a non-finite parameter that a module carried into its call."""
        for optimizer in self._held:
            if any(p is tensor for p in self.parameters_of(optimizer)):
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
            region.report(self.parameter_finding(optimizer, tensor, region.run.steps))
            return
        found = state.bad_state(optimizer)
        if found is not None:
            parameter, key, tensor = found
            name = region.names.label(optimizer, parameter) if parameter is not None else "the optimizer"
            steps = region.run.steps
            region.report(verdicts.optimizer_state(steps, name, key, tensor, optimizer, parameter, self.spot))

    def judge_buffers(self) -> None:
        """Judge the buffers of all modules seen that were written to."""
        __tracebackhide__ = True
        region = self._region
        found = state.bad_buffer(region.names)
        if found is not None:
            name, tensor = found
            region.report(verdicts.buffer(region.run.steps, name, tensor, self.spot))

    def judge_all(self) -> None:
        """Judge every held optimizer and all buffers."""
        __tracebackhide__ = True
        for optimizer in list(self._held):
            self.judge(optimizer)
        self.judge_buffers()

    def forget(self) -> None:
        """Drop every reference to the user's objects."""
        self._held.clear()
        self.norms.clear()
