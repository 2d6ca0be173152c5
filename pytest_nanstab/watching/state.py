"""Parameters, buffers and optimizer state: the sinks in which a bad value stays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pytest_nanstab.watching import measure, members, torch_private

# The watch holds strong references to at most this many optimizers.
MAX_HELD = 4


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters of an optimizer, group by group."""
    groups = getattr(optimizer, "param_groups", None) or ()  # whoever frees memory by hand may have taken them away
    return [p for group in groups for p in group["params"]]


def bad_parameter(optimizer: Optimizer) -> Tensor | None:
    """The first parameter that holds a NaN or an infinity; those that take no gradient are what the user made them."""
    return next((p for p in parameters_of(optimizer) if p.requires_grad and not is_finite(p)), None)


def bad_state(optimizer: Optimizer) -> tuple[Tensor | None, str, Tensor] | None:
    """(parameter, name of the state, tensor) of the first non-finite tensor an optimizer keeps.

    A single infinity is a bound that nothing has lowered yet; so are infinities alone, in an optimizer that is not
    torch's.
    """
    kind: Any = type(optimizer)
    own = torch_private.has_own_step(kind)
    for parameter, state in list(optimizer.state.items()):
        for name, tensor in _state_tensors(state):
            seen = measure.extent(tensor)
            if seen is None or seen.finite:
                continue
            if seen.has_nan or not (tensor.numel() == 1 or (own and seen.low == seen.high)):
                return (parameter if isinstance(parameter, Tensor) else None), name, tensor
    return None


def _state_tensors(state: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, dict):
        for name, value in state.items():
            yield from measure.tensors_in(value, str(name))


def bad_in_module(module: torch.nn.Module) -> tuple[str, str, Tensor] | None:
    """("parameter" or "buffer", name, tensor) of the first NaN, or infinite weight, a module carries into its call."""
    for name, parameter in members.named_parameters(module):
        if not is_finite(parameter):
            return "parameter", name, parameter
    for name, buffer in members.named_buffers(module):
        seen = measure.extent(buffer)
        infinite_statistic = name.rpartition(".")[2].startswith("running_") and seen is not None and not seen.finite
        if seen is not None and (seen.has_nan or infinite_statistic):
            return "buffer", name, buffer
    return None


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds finite numbers alone, as far as it can be read."""
    seen = measure.extent(tensor)
    return seen is None or seen.finite


def hyperparameters(optimizer: Optimizer, parameter: Tensor | None) -> dict[str, Any]:
    """The numbers of the parameter's group that a finding about a broken step shows."""
    for index, group in enumerate(optimizer.param_groups):
        if parameter is None or any(p is parameter for p in group["params"]):
            shown = {k: _number(group[k]) for k in ("lr", "eps", "weight_decay", "momentum") if k in group}
            return {
                "optimizer": f"{type(optimizer).__name__}, param group {index}",
                "hyperparameters": ", ".join(f"{k} {v:g}" for k, v in shown.items() if v is not None),
            }
    return {"optimizer": type(optimizer).__name__}


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) else None


def bad_rate(optimizer: Optimizer) -> str | None:
    """The first hyperparameter that is not finite: a schedule that divided by zero."""
    for index, group in enumerate(optimizer.param_groups):
        for name in ("lr", "weight_decay", "momentum", "eps"):
            value = _number(group.get(name))
            if value is not None and not math.isfinite(value):
                return f"{name} is {value} in param group {index}"
    return None
