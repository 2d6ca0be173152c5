"""Parameters that do not move, although they should: what is stuck, put back, never stepped or never given anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pytest_nanstab.attribution.constructions import line_of
from pytest_nanstab.attribution.source import shown
from pytest_nanstab.findings import Finding
from pytest_nanstab.propagation.passes import Pass
from pytest_nanstab.watching.run import Run
from pytest_nanstab.watching.state import hyperparameters

ENOUGH = 10  # steps
_LARGE_EPS = 1e-2
_NAMED = 4
_UNDERFLOW = "; or all of them are below 6e-8, the smallest number of float16"


@dataclass(frozen=True)
class Trained:
    """What a training leaves to be judged.

    Attributes:
        model: the trained model.
        optimizers: its optimizers, in order of stepping.
        run: the measurements, with details.
        passes: observed passes over a few batches, at the end.
        stuck: names of the parameters that no step changed although each had a gradient and a learning rate.
        restored: those that something put back after each step.
        unmoved: whether no parameter of the model has changed at all, although some had a gradient.
        context: merged into the evidence of every finding.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    run: Run
    passes: Sequence[Pass] = ()
    stuck: Sequence[str] = ()
    restored: Sequence[str] = ()
    unmoved: bool = False
    context: Mapping[str, Any] | None = None


def stuck_findings(trained: Trained) -> Iterator[Finding]:
    """What does not move: everything, what something puts back, or what no step changes."""
    silent = _without_effect(trained)
    if silent is not None:
        yield silent
        return
    if trained.unmoved and trained.run.steps and not any(trained.run.lr):
        return  # a rate of 0 is somebody's choice
    if trained.unmoved:
        names = [name for name, history in trained.run.parameters.items() if any(history.update_ratio)]
        cause = (
            "the optimizer steps other tensors: a copy, or parameters that were replaced after it was made"
            if names
            else "no update was large enough to change a bit, or none reached the parameters"
        )
        remedy = "make the optimizer from model.parameters() after the model is complete, or copy its masters back"
        if trained.stuck and not names:  # the optimizer does hold them: it is the size of the updates
            cause, remedy = _why_stuck(trained, trained.stuck[0])
        message = "no parameter of the model has changed, although they have gradients"
        yield _stuck_finding(trained, message, None, cause, remedy)
        return
    if trained.restored:
        yield _stuck_finding(
            trained,
            f"something puts {several(trained.restored)} back after every step",
            trained.restored[0],
            "the steps change it, and before the next one it holds its old value again",
            "look for what writes to it: a state that is loaded, an average that is copied, a hook",
        )
    if trained.stuck and not only_rounding(trained):
        name = trained.stuck[0]
        message = f"no step changed {several(trained.stuck)}, despite the gradient"
        yield _stuck_finding(trained, message, name, *_why_stuck(trained, name))


def _without_effect(trained: Trained) -> Finding | None:
    """Steps none of which had anything to do: their gradients were cleared before, all were exactly 0, or the optimizer
    holds parameters that the model no longer has."""
    run = trained.run
    raw = [norm for norm in run.grad_norm if norm is not None]
    received = [norm for norm in run.clipped_grad_norm if norm is not None]
    if len(received) < ENOUGH or max(received) > 0:
        return _stale(trained) if run.steps else None
    if max(raw, default=0.0) > 0:
        return _stuck_finding(
            trained,
            "every step found its gradients cleared",
            None,
            "zero_grad() runs between backward() and step(), so no step has anything to do",
            "call zero_grad() before backward(), or after step()",
        )
    known = [norm for history in run.parameters.values() for norm in history.grad_norm if norm is not None]
    if not known and any(parameter.grad is not None for parameter in trained.model.parameters()):
        return _stuck_finding(
            trained,
            "no step found a gradient, although the model has some",
            None,
            "the optimizer steps other tensors: clones, or parameters that were replaced after it was made",
            "make the optimizer from model.parameters() after the model is complete",
        )
    in_half = str((trained.context or {}).get("precision", "")).startswith("16-")
    if known:
        return _stuck_finding(
            trained,
            f"every gradient of all {run.steps} steps is exactly 0",
            None,
            "the loss does not depend on the parameters where it is: dead units, a rounding, or a factor of 0"
            + (_UNDERFLOW if in_half else ""),
            "look for what is constant between the parameters and the loss"
            + ("; scale the loss (GradScaler), or use bfloat16" if in_half else ""),
        )
    return _stale(trained)


def _stale(trained: Trained) -> Finding | None:
    """The optimizer was made before part of the model was replaced: it keeps the old parameters."""
    named = {id(parameter): (name, parameter) for name, parameter in trained.model.named_parameters()}
    owned = {id(p): p for optimizer in trained.optimizers for group in optimizer.param_groups for p in group["params"]}
    old = [p for key, p in owned.items() if key not in named and p.requires_grad and p.grad is None]
    new = [(name, p) for key, (name, p) in named.items() if key not in owned and p.grad is not None]
    if not old or not new or not any(p.shape[1:] == new[0][1].shape[1:] for p in old):
        return None
    names = [name for name, _ in new]
    return _stuck_finding(
        trained,
        f"the optimizer does not step {several(names)}, but what it replaced",
        names[0],
        "part of the model was replaced after the optimizer was made: it holds parameters the model no longer has",
        "make the optimizer after the model is complete, or add_param_group() for what is new",
    )


def only_rounding(trained: Trained) -> bool:
    """Whether less than half of what is trained is stuck, in a dtype that rounds so coarsely that this is expected: the
    weights of a normalisation stay at 1 in bfloat16 at any usual rate. That is told in a note."""
    named = dict(trained.model.named_parameters())
    stuck = [named[name] for name in trained.stuck if name in named]
    if len(stuck) < len(trained.stuck) or any(parameter.element_size() >= 4 for parameter in stuck):
        return False
    moved = [named[name] for name in trained.run.parameters if name in named and name not in trained.stuck]
    count, size = len(stuck), sum(parameter.numel() for parameter in stuck)
    return count < len(moved) and size < sum(parameter.numel() for parameter in moved)


def _why_stuck(trained: Trained, name: str) -> tuple[str, str]:
    """Cause and remedy: too coarse a dtype, an eps that swamps the gradient, or a rate that is too small."""
    parameter = dict(trained.model.named_parameters()).get(name)
    groups = [group for optimizer in trained.optimizers for group in optimizer.param_groups]
    group = next((group for group in groups if any(p is parameter for p in group["params"])), {})
    eps = group.get("eps")
    if isinstance(eps, float) and eps >= _LARGE_EPS:
        return (
            f"eps {eps:g} in the denominator swamps the gradient, so the updates are below the last bit of the weights",
            "give eps its default (1e-8; 1e-4 in float16)",
        )
    if parameter is not None and parameter.element_size() < 4:
        kind = str(parameter.dtype).removeprefix("torch.")
        part = torch.finfo(parameter.dtype).eps / 2
        return (
            f"{kind} drops updates smaller than {100 * part:.1g} % of a weight",
            "keep float32 master weights (autocast instead of a cast model), or stochastic rounding",
        )
    return (
        f"the updates are below the last bit of the weights at learning rate {_rate(group)}, or the optimizer drops "
        "them",
        "raise the learning rate or check its schedule, or look at what the optimizer does with the parameter",
    )


def _rate(group: Mapping[str, Any]) -> str:
    rate = group.get("lr")
    return f"{float(rate):g}" if isinstance(rate, (int, float, torch.Tensor)) else "?"


def several(names: Sequence[str]) -> str:
    """ "conv1.weight and 2 more"."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _unchanged(trained: Trained) -> str | None:
    """ "3 of 6 parameters, 1864 of 1898 values: conv1.weight, …"."""
    named = dict(trained.model.named_parameters())
    names = [name for name in trained.stuck if name in named]
    if not names:
        return None
    values = sum(named[name].numel() for name in names)
    whole = sum(parameter.numel() for parameter in named.values())
    shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"{len(names)} of {len(named)} parameters, {values} of {whole} values: {shown}"


def _stuck_finding(trained: Trained, message: str, parameter: str | None, cause: str, remedy: str) -> Finding:
    optimizer = trained.optimizers[0] if trained.optimizers else None
    numbers = {} if optimizer is None else hyperparameters(optimizer, None)
    line = next((shown(line_of(known)) for known in trained.optimizers if line_of(known)), None)
    stuck = {} if parameter is None else {"parameter": parameter, "unchanged": _unchanged(trained)}
    return Finding(
        kind="stuck-parameter",
        message=message,
        phase="optimizer",
        module=(parameter or "").rpartition(".")[0] or None,
        source=line,
        evidence={**stuck, **numbers},
        cause=cause,
        remedy=remedy,
    )
