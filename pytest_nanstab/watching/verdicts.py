"""The findings of the watch: every text about what a sink showed is written here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pytest_nanstab.attribution.source import shown, user_line
from pytest_nanstab.config import Limit
from pytest_nanstab.findings import Finding, Phase
from pytest_nanstab.watching import measure, state
from pytest_nanstab.watching.measure import PRECISION
from pytest_nanstab.watching.names import owner

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from pytest_nanstab.watching.clips import Clip
    from pytest_nanstab.watching.counters import Stopped
    from pytest_nanstab.watching.headroom import Least
    from pytest_nanstab.watching.outputs import Call
    from pytest_nanstab.watching.pending import PendingLoss
    from pytest_nanstab.watching.tally import Tally

Spot = tuple[str, int] | None


def word(value: float) -> str:
    """ "NaN", "Inf" or "-Inf"."""
    if math.isnan(value):
        return "NaN"
    return "Inf" if value > 0 else "-Inf"


def _word_of(facts: dict[str, Any]) -> str:
    return "NaN" if facts.get("nan", 1) else "Inf"


def loss(pending: PendingLoss, module: str | None, **extra: Any) -> Finding:
    """The loss of a training step is not finite, and the step used it."""
    return Finding(
        kind="nonfinite-loss",
        message=f"{word(pending.value)} in the loss at step {pending.step}" + (f", out of {module}" if module else ""),
        step=pending.step,
        phase="forward",
        module=module,
        source=shown(pending.spot),
        evidence={"tensor": "loss", "value": pending.value, **extra},
    )


KEPT = "it was there before any operation of the step: in the batch, or kept from an earlier one"
ARRIVED = "it was there before the model was called: in the batch, or made on its way to the model"


def input_of_step(pending: PendingLoss, name: str, field: str, facts: dict[str, Any], spot: Spot) -> Finding:
    """The data of a training step held NaN or Inf before the model touched it."""
    step, batch = pending.step, pending.batch if pending.batch is not None else pending.backwards
    return Finding(
        kind="nonfinite-input",
        message=f"{_word_of(facts)} in the data of step {step}, {field} of {name}",
        step=step,
        phase="data",
        module=name,
        source=shown(spot),
        evidence={"batch": batch, "tensor": field, "field": field, **facts},
        cause=ARRIVED,
        remedy="reject or repair it where the batch is made; assert_finite_batches(loader) finds every such row",
    )


def gradient(step: int, name: str, tensor: Tensor | None, spot: Spot, **extra: Any) -> Finding:
    """A gradient that the optimizer is about to use is not finite."""
    facts = measure.nonfinite_facts(tensor) if tensor is not None else {}
    return Finding(
        kind="nonfinite-gradient",
        message=f"{_word_of(facts)} in the gradient of {name} at step {step}",
        step=step,
        phase="backward",
        module=owner(name),
        source=shown(spot),
        evidence={"parameter": name, "tensor": f"gradient of {name}", **facts, **extra},
    )


def norm_overflow(step: int, norm: float, spot: Spot) -> Finding:
    """A clip returned a non-finite norm although every gradient is finite: it has zeroed them all."""
    return Finding(
        kind="nonfinite-gradient",
        message=f"the gradient norm overflowed in the clip of step {step}",
        step=step,
        phase="backward",
        source=shown(spot),
        evidence={"tensor": "total norm", "value": norm},
        cause="the squares of the gradients exceed their dtype, so the clip scaled all of them to zero",
        remedy="lower the loss or its scale, or clip by value first",
    )


def parameter(
    step: int | None,
    name: str,
    tensor: Tensor,
    optimizer: Optimizer | None,
    spot: Spot,
    *,
    later: bool = False,
    **extra: Any,
) -> Finding:
    """A parameter is not finite; `step` is the last optimizer step done, 0 before the first.

    `later`: other steps may have followed it, or it is not known which one did it. A schedule may have changed the
    hyperparameters since.
    """
    facts = measure.nonfinite_facts(tensor)
    when = "before any optimizer step" if step == 0 else f"after step {step}" if step else "at the end"
    numbers = state.hyperparameters(optimizer, tensor) if optimizer is not None else {}
    if later and "hyperparameters" in numbers:
        numbers["hyperparameters now"] = numbers.pop("hyperparameters")
    rate = state.bad_rate(optimizer) if optimizer is not None else None
    return Finding(
        kind="nonfinite-parameter",
        message=f"{_word_of(facts)} in {name} {when}",
        step=step or None,
        phase="init" if step == 0 else "optimizer",
        module=owner(name),
        source=shown(spot),
        evidence={"parameter": name, "tensor": name, **facts, **numbers, **extra},
        cause=f"{rate}: the schedule that set it divided by zero or overflowed" if rate else None,
        remedy="make the schedule finite from its first to its last step" if rate else None,
    )


def buffer(step: int | None, name: str, tensor: Tensor, spot: Spot, phase: str = "forward") -> Finding:
    """A buffer that was written to while watched holds a NaN, or is an infinite running statistic."""
    facts = measure.nonfinite_facts(tensor)
    when = f"after step {step}" if step else "after the forward pass"
    running = name.rpartition(".")[2].startswith("running_")
    return Finding(
        kind="nonfinite-buffer",
        message=f"{_word_of(facts)} in {name} {when}",
        step=step or None,
        phase="eval" if phase == "eval" else "forward",
        module=owner(name),
        source=shown(spot),
        evidence={"tensor": name, "buffer": name, **facts},
        cause="a batch with NaN, Inf or overflowing values went through in training mode and stays in the statistics"
        if running
        else None,
        remedy="check the batch before the forward pass: skipping the step afterwards does not undo the statistics"
        if running
        else None,
    )


def optimizer_state(
    step: int, name: str, key: str, tensor: Tensor, *, optimizer: Optimizer, parameter: Tensor | None, spot: Spot
) -> Finding:
    """A moment or another tensor that an optimizer keeps is not finite."""
    facts = measure.nonfinite_facts(tensor)
    return Finding(
        kind="nonfinite-optimizer-state",
        message=f"{_word_of(facts)} in {key} of {name} after step {step}",
        step=step or None,
        phase="optimizer",
        module=owner(name),
        source=shown(spot),
        evidence={
            "parameter": name,
            "tensor": f"{key} of {name}",
            **facts,
            **state.hyperparameters(optimizer, parameter),
        },
    )


def output(call: Call, name: str, step: int | None) -> Finding:
    """An outermost call made NaN out of NaN-free input."""
    mode = "training" if call.module.training else "eval"
    return Finding(
        kind="nonfinite-output",
        message=f"NaN in the output of {name} in {mode} mode",
        step=step or None,
        phase="forward" if call.module.training else "eval",
        module=name,
        source=shown(call.spot),
        evidence={"tensor": f"output {call.output_path}".rstrip(), **call.output_facts},
    )


def ineffective_clip(step: int, clip: Clip, received: float, *, after_step: bool = False) -> Finding:
    """A clip that touched none of the gradients its optimizer received: it ran too early, or got no parameters.

    `after_step`: the first call came after a step, so it stands behind it in the loop.
    """
    empty = not clip.parameters
    early_or_late = "ran after step()" if after_step else "ran before backward()"
    what = "got no parameters" if empty else early_or_late
    saw = "no parameters" if empty else "only gradients of an earlier step" if clip.gradients else "no gradient at all"
    early = f"call {clip.function} between loss.backward() and optimizer.step()"
    return Finding(
        kind="ineffective-clip",
        message=f"{clip.function} had no effect at step {step}: it {what}",
        step=step,
        phase="backward",
        op=clip.function,
        source=shown(clip.spot),
        evidence={"bound": clip.bound, "received": received, "saw": saw},
        cause="the generator of parameters was used up before, by the optimizer or an earlier clip"
        if empty
        else "the clip ran after the step that used the gradients, which were cleared before the next backward()"
        if after_step
        else "the clip ran before the backward() that made the gradients the optimizer used",
        remedy="hand over model.parameters() anew, or keep the parameters in a list" if empty else early,
    )


def foreign_clip(step: int, tally: Tally) -> Finding:
    """A clip over parameters that nobody steps, or none of which has a gradient."""
    clip, idle = tally.first, tally.calls == tally.empty
    saw = "no gradient at all" if idle else "parameters that no optimizer steps"
    return Finding(
        kind="ineffective-clip",
        message=f"{clip.function} had no effect: it got {'no gradient' if idle else saw}",
        step=step,
        phase="backward",
        op=clip.function,
        source=shown(clip.spot),
        evidence={"bound": clip.bound, "saw": saw, "calls": tally.calls, "parameters": len(clip.parameters)},
        cause="none of the parameters it was given ever had a gradient: they are frozen, or another model's"
        if idle
        else "the parameters it was given belong to another model, or to a copy, than those the optimizer steps",
        remedy="clip what the optimizer steps: [p for group in optimizer.param_groups for p in group['params']]",
    )


def scaled_clip(step: int, clip: Clip) -> Finding:
    """A clip of gradients that were still multiplied by the loss scale."""
    scale = clip.scale or 1.0
    return Finding(
        kind="scaled-clip",
        message=f"{clip.function} clipped scaled gradients at step {step}",
        step=step,
        phase="backward",
        op=clip.function,
        source=shown(clip.spot),
        evidence={"loss scale": scale, "bound": clip.bound, "effective bound": clip.bound / scale},
        cause="the gradients were still multiplied by the loss scale, so the bound was too small by that factor",
        remedy="call scaler.unscale_(optimizer) before clipping",
    )


def stuck_scale(step: int, attempts: int, scale: float | None, spot: Spot) -> Finding:
    """No step of a GradScaler succeeds any more."""
    fell = scale is not None and scale < 1
    return Finding(
        kind="stuck-loss-scale",
        message="the loss scale fell below 1" if fell else f"the last {attempts} optimizer steps were all skipped",
        step=step or None,
        phase="optimizer",
        op="GradScaler.update",
        source=shown(spot),
        evidence={"skipped in a row": attempts, "loss scale": scale},
        cause="backward passes go on giving NaN or Inf gradients although the scale is halved after each of them",
        remedy="look for the operation that overflows in float16 itself; bfloat16 needs no scaling",
    )


def limit(name: str, bound: Limit, measured: float, *, step: int, what: str, phase: Phase) -> Finding:
    """A bound of the user's is broken."""
    below = name.startswith("min_")
    return Finding(
        kind="limit",
        message=f"{what} {measured:.4g} {'below' if below else 'above'} {name} {bound.value:g} at step {step}",
        step=step,
        phase=phase,
        source=user_line(2),
        evidence={"value": measured, "limit": bound.value, "limit_name": name, "limit_source": bound.source},
    )


def headroom(bound: Limit, least: Least, step: int, spot: Spot) -> Finding:
    """A tensor came nearer to overflow than the user allows."""
    return Finding(
        kind="limit",
        message=f"{least.quantity} headroom {least.bits:.3g} bits below {bound.value:g} at step {step}",
        step=step,
        phase="forward" if least.quantity == "activation" else "backward",
        module=least.name,
        source=shown(spot),
        evidence={
            "tensor": f"{least.quantity} of {least.name}",
            "largest": least.largest,
            "dtype": str(least.dtype).removeprefix("torch."),
            "value": least.bits,
            "limit": bound.value,
            "limit_name": "min_headroom_bits",
            "limit_source": bound.source,
        },
    )


def stopped_counter(step: int, stopped: Stopped, spot: Spot) -> Finding:
    """A counter stands still because its format has no number for the next integer."""
    dtype = str(stopped.dtype).removeprefix("torch.")
    return lost_precision(
        f"{stopped.name} has stopped at {stopped.value:g}: {dtype} cannot add {stopped.increment:g} to it",
        stopped.dtype,
        {"value": stopped.value, "increment": stopped.increment, "last grew": f"at step {stopped.step}"},
        step=step,
        module=stopped.name,
        source=shown(spot),
    )


def lost_precision(
    message: str,
    dtype: torch.dtype,
    evidence: Mapping[str, Any],
    *,
    step: int | None,
    module: str | None = None,
    op: str | None = None,
    source: str | None = None,
) -> Finding:
    """An integer that its floating format cannot hold: finite, and wrong."""
    name, precision = str(dtype).removeprefix("torch."), PRECISION[dtype]
    return Finding(
        kind="lost-precision",
        message=message,
        step=step,
        phase="forward",
        module=module,
        op=op,
        source=source,
        evidence={"dtype": name, **evidence},
        cause=f"{name} has {precision} significant bits: above 2**{precision} = {2**precision} it skips integers, and "
        "what is added is rounded away",
        remedy="keep counters, sums and positions in torch.int64 (casts of a model leave integers alone) or in float64",
    )


def broken(bound: Limit | None, measured: float | None, *, below: bool = False) -> bool:
    """Whether a measurement breaks a bound; NaN breaks every bound."""
    if bound is None or measured is None:
        return False
    return not (measured >= bound.value if below else measured <= bound.value) or math.isnan(measured)


def display_name(module: nn.Module) -> str:
    """The outermost module's own name: it has no path."""
    return type(module).__name__
