"""What suites and `nanstab.train` record of every step beside the global norms: each parameter, rates, loss scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_nanstab.watching import measure, torch_private
from pytest_nanstab.watching.norms import norms_of
from pytest_nanstab.watching.run import ParameterHistory, Run

if TYPE_CHECKING:
    from pytest_nanstab.watching.names import Names


class Details:
    """Fills the detailed lists of a run; every entry belongs to one optimizer step."""

    def __init__(self, run: Run, names: Names) -> None:
        self._run = run
        self._names = names
        self._raw: dict[int, float] = {}
        self._known: dict[int, tuple[Tensor, str]] = {}
        self._optimizers: dict[int, int] = {}

    def arrived(self, parameters: Iterable[Tensor], scale: float) -> None:
        """A backward has left these gradients, multiplied by a loss scale."""
        with_gradient = [p for p in parameters if p.grad is not None]
        for parameter, norm in zip(with_gradient, _gradient_norms(with_gradient), strict=True):
            self._raw[id(parameter)] = norm / scale

    @torch_private.past_modes
    def stepping(self, optimizer: Any, parameters: Sequence[Tensor], scale: float, loss_scale: float | None) -> None:
        """An optimizer is about to step; `scale` is what its own kernel takes off the gradients."""
        run = self._run
        self._fill(run.lr, [_rate(optimizer)])
        self._fill(run.loss_scale, [loss_scale])
        self._fill(run.optimizer, [self._optimizers.setdefault(id(optimizer), len(self._optimizers))])
        with_gradient = [p for p in parameters if p.grad is not None]
        for parameter, norm in zip(with_gradient, _gradient_norms(with_gradient), strict=True):
            history = self._history(optimizer, parameter)
            self._fill(history.clipped_grad_norm, [norm / scale])
            self._fill(history.grad_norm, [self._raw.pop(id(parameter), norm / scale)])
        for parameter in parameters:
            if parameter.grad is None:
                self._history(optimizer, parameter)

    def stepped(self, optimizer: Any, ratios: Iterable[tuple[Tensor, float]]) -> None:
        """It has stepped: ||dw|| / ||w|| of each parameter that had a gradient."""
        for parameter, ratio in ratios:
            self._fill(self._history(optimizer, parameter).update_ratio, [ratio])

    def _fill(self, values: list[Any], entry: list[Any]) -> None:
        values += [None] * (self._run.steps - 1 - len(values))
        values += entry

    def _history(self, optimizer: Any, parameter: Tensor) -> ParameterHistory:
        # The parameter is kept, so that its identity stays its own.
        known = self._known.get(id(parameter))
        if known is None:
            known = self._known[id(parameter)] = (parameter, self._names.label(optimizer, parameter))
        return self._run.parameters.setdefault(known[1], ParameterHistory())

    def close(self) -> None:
        """The run is over: make all lists as long as it, and let go of the parameters."""
        run = self._run
        for history in run.parameters.values():
            for values in (history.grad_norm, history.clipped_grad_norm, history.update_ratio):
                values.extend([None] * (run.steps - len(values)))
        self._known.clear()
        self._raw.clear()


def _gradient_norms(parameters: Sequence[Tensor]) -> list[float]:
    return norms_of([p.grad for p in parameters if p.grad is not None])


def _rate(optimizer: Any) -> float | None:
    """The learning rate of the first group."""
    group: dict[str, Any] = next(iter(getattr(optimizer, "param_groups", ())), {})
    rate = group.get("lr")
    if isinstance(rate, Tensor):
        seen = measure.extent(rate)
        return None if seen is None else seen.high
    return float(rate) if isinstance(rate, (int, float)) else None
