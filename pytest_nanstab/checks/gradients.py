"""What a finished training shows about its gradients beside non-finite values: the heuristics of `gradient_bounds`.

They are guesses, judged in suites only and calibrated in `tests/test_calibration.py` on more than 280 healthy programs,
none of which they accuse. What is a fact (a parameter no step has changed) is said as one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pytest_nanstab.attribution.constructions import line_of
from pytest_nanstab.attribution.source import shown
from pytest_nanstab.checks import _units
from pytest_nanstab.checks._construction import construction_line
from pytest_nanstab.checks._stuck import Trained, only_rounding, several, stuck_findings
from pytest_nanstab.findings import Finding
from pytest_nanstab.propagation.depth import Depth, gradient_depth, layers_of, place
from pytest_nanstab.propagation.passes import Op, Pass
from pytest_nanstab.watching.run import Run
from pytest_nanstab.watching.state import hyperparameters
from pytest_nanstab.watching.telemetry import fold, grown, telemetry

# Growth needs this many measured steps, so that a quarter of them is three.
GROWTH_STEPS = 12
# The median raw norm of the last quarter of the steps over that of the first. Healthy trainings shrink their gradients
# or let them grow by warm-up, sharpening or an adversary's progress (measured: up to 27-fold), but not while the loss
# rises fivefold as well, or falls without bound.
GROWN_WITH_LOSS, GROWN_DOWNWARDS, GROWN_ALONE, LOSS_GROWN = 3.0, 10.0, 1e3, 5.0
# A single step whose raw norm is so large, and so many times what it ever was before, in at least so many steps:
# healthy trainings leap up to 6-fold (measured).
LEAP, LEAP_AFTER = 1e6, 3
_ROWS = 12


def gradient_findings(trained: Trained) -> list[Finding]:
    """The findings, root causes first: an explosion explains everything else, dead units explain lost gradients."""
    growing = list(_growing(trained))
    lost = [] if growing else [*_dead(trained), *_flat(trained)]
    if not lost:
        lost = [found for found in (_depth(trained, exploded=bool(growing)),) if found is not None]
    found = [*growing, *lost, *stuck_findings(trained)]
    context = dict(trained.context or {})
    return [replace(f, evidence={**context, **f.evidence, **telemetry(trained.run, f)}) for f in found]


# --- growth over the run


def _growing(trained: Trained) -> Iterator[Finding]:
    run = trained.run
    numbers: list[int | None] = [*sorted({index for index in run.optimizer if index is not None})]
    for number in numbers or [None]:
        steps = [step for step in range(run.steps) if number is None or run.optimizer[step] == number]
        norms = [run.grad_norm[step] for step in steps]
        leapt = leap(norms)
        if leapt is not None:
            yield _leap_finding(run, steps, leapt)
            continue
        found = growth(norms, [run.loss[step] for step in steps])
        if found is not None:
            optimizer = trained.optimizers[number or 0] if len(trained.optimizers) > (number or 0) else None
            yield _growth_finding(run, found, optimizer)


def leap(norms: Sequence[float | None]) -> int | None:
    """The first place at which the norm is a millionfold the largest before it, and a million at least."""
    largest, seen = 0.0, 0
    for index, norm in enumerate(norms):
        if norm is None or not math.isfinite(norm):
            continue
        if seen >= LEAP_AFTER and largest > 0 and norm >= LEAP * max(largest, 1.0):
            return index
        largest, seen = max(largest, norm), seen + 1
    return None


def _leap_finding(run: Run, steps: Sequence[int], index: int) -> Finding:
    before = [norm for step in steps[:index] if (norm := run.grad_norm[step]) is not None and math.isfinite(norm)]
    norm, step = run.grad_norm[steps[index]] or 0.0, steps[index] + 1
    known = [loss for loss in run.loss[: step - 1] if loss is not None and math.isfinite(loss)]
    evidence: dict[str, Any] = {"norm": f"{norm:.3g}, at most {max(before):.3g} in the steps before"}
    if known and run.loss[step - 1] is not None:
        evidence["loss"] = f"{run.loss[step - 1]:.3g}, median {statistics.median(known):.3g} in the steps before"
    return Finding(
        kind="exploding-gradient",
        message=f"gradient norm leapt {fold(norm / max(before))} at step {step}",
        step=step,
        phase="backward",
        evidence=evidence,
        cause="one batch is unlike all others: a value or target far outside of theirs, or a division by almost "
        "nothing on its way",
        remedy="look at that batch and at what scales it; a clip would only hide it",
    )


@dataclass(frozen=True)
class Growth:
    """Medians of the first and last quarter of the steps: raw gradient norm, and |loss| where it is known."""

    norms: tuple[float, float]
    losses: tuple[float, float] | None
    steps: int


def growth(norms: Sequence[float | None], losses: Sequence[float | None]) -> Growth | None:
    """Whether one optimizer's gradients explode: they grow over the run against their own past, and go on growing.

    Medians of quarters, so neither a spike (see `leap`) nor a large but steady norm counts; judged from 12 measured
    steps on. The norm has grown threefold while the loss rose fivefold, tenfold while a loss without lower bound fell
    to five times its size, or a thousandfold without the loss having fallen. The numbers are ours: no paper draws a
    line.
    """
    known = [norm for norm in norms if norm is not None and math.isfinite(norm)]
    if len(known) < GROWTH_STEPS:
        return None
    quarters = _quarters(known)
    first, last = quarters[0], quarters[-1]
    if not (first > 0 and last == max(quarters) and last > quarters[1]):
        return None
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    ends = (_quarters(finite)[0], _quarters(finite)[-1]) if len(finite) >= GROWTH_STEPS else None
    allowed = _allowed(ends)
    if allowed == GROWN_ALONE and not quarters[1] < quarters[2] < last:
        return None
    return Growth((first, last), ends, len(known)) if last > allowed * first else None


def _allowed(losses: tuple[float, float] | None) -> float:
    """How far the norm may grow beside such a loss."""
    if losses is None:
        return GROWN_ALONE
    first, last = losses
    large = abs(last) > LOSS_GROWN * abs(first)
    if large and last > first:
        return GROWN_WITH_LOSS
    if large:
        return GROWN_DOWNWARDS
    return GROWN_ALONE if last >= first else math.inf


def _quarters(values: Sequence[float]) -> list[float]:
    """The median of each quarter."""
    quarter = len(values) // 4
    return [statistics.median(values[start : start + quarter]) for start in (0, quarter, len(values) - 2 * quarter)] + [
        statistics.median(values[-quarter:])
    ]


def _growth_finding(run: Run, found: Growth, optimizer: Optimizer | None) -> Finding:
    first, last = found.norms
    evidence: dict[str, Any] = {"norm": f"median {first:.3g} in the first quarter of the steps, {last:.3g} in the last"}
    falling = False
    if found.losses is not None:
        evidence["loss"] = f"median {found.losses[0]:.3g} in the first quarter, {found.losses[1]:.3g} in the last"
        falling = found.losses[1] < found.losses[0]
    rates = [rate for rate in run.lr if rate is not None]
    if rates:
        evidence["learning rate"] = f"{rates[0]:g}" if rates[0] == rates[-1] else f"{rates[0]:g} to {rates[-1]:g}"
    return Finding(
        kind="exploding-gradient",
        message=f"gradient norm grew {fold(last / first)} over {found.steps} steps",
        phase="backward",
        module=_grown_most(run),
        source=shown(line_of(optimizer)) if optimizer is not None else None,
        evidence=evidence,
        cause="the loss has no lower bound, so its gradient grows with the parameters: a sign, or a missing constraint"
        if falling
        else f"every update makes the next gradient larger: the steps overshoot{_rate_words(rates)}",
        remedy="check the sign of the loss and of weight decay, bound the loss, or clip the gradient norm"
        if falling
        else "lower the learning rate or warm it up, clip the gradient norm, check the scale of weights and inputs",
    )


def _rate_words(rates: Sequence[float]) -> str:
    if not rates:
        return ""
    rising = rates[-1] > 1.5 * rates[0]
    return f" at a learning rate that rose to {rates[-1]:g}" if rising else f" at learning rate {rates[-1]:g}"


def _grown_most(run: Run) -> str | None:
    found = grown(run)
    return found[0][1].rpartition(".")[0] or None if found else None


# --- decay and growth over depth


def _depth(trained: Trained, *, exploded: bool) -> Finding | None:
    """What all observed passes agree on: one batch may be special."""
    usable = _usable(trained)
    found = [gradient_depth(seen) for seen in usable]
    if not found or any(depth is None for depth in found):
        return None if exploded else _cut_off(trained, usable)
    depth = min((d for d in found if d is not None), key=lambda d: abs(math.log(d.total)))
    if exploded and not depth.vanishes:
        return None
    return depth_finding(trained.model, depth)


def _was_trained(trained: Trained, layer: str) -> bool:
    """Whether a layer got a gradient in the training, whatever the loss by itself gives it: a second loss, say."""
    histories = trained.run.parameters.items()
    return any(any(history.grad_norm) for name, history in histories if name.rpartition(".")[0] == layer)


def _cut_off(trained: Trained, passes: Sequence[Pass]) -> Finding | None:
    """No gradient at all reaches any of the first layers, in none of the passes, while those behind them get one."""
    names: list[str] = []
    for seen in passes:
        layers = layers_of(seen)
        first = [layer for layer in layers if not layer.above]
        if not first or any(layer.op.gradient for layer in first) or not any(layer.op.gradient for layer in layers):
            return None
        names = [layer.name for layer in layers if not layer.op.gradient]
    if not names or any(_was_trained(trained, name) for name in names):
        return None
    return Finding(
        kind="vanishing-gradient",
        message=f"no gradient reaches {several(names)}: it is exactly 0",
        phase="backward",
        module=names[0],
        source=construction_line(trained.model, names[0]),
        evidence={"cut off": names[:_ROWS]},
        cause="something between them and the layers behind passes nothing on: dead units, a rounding, a factor of 0",
        remedy="look for what is constant between the last of them and the next layer",
    )


def depth_finding(model: nn.Module, depth: Depth, *, kind: str = "", phase: str = "backward") -> Finding:
    """A gradient that does not reach the first layers, or reaches them a thousandfold."""
    word = "vanishes" if depth.vanishes else "explodes"
    over = f"x{depth.factor:.2g} per layer, {depth.total:.1e} after {depth.steps}"
    activation = culprit(depth)
    named = place(depth) if kind else depth.first.name
    return Finding(
        kind=kind or ("vanishing-gradient" if depth.vanishes else "exploding-gradient"),  # type: ignore[arg-type]
        message=f"the gradient {word}: {over}, at {depth.first.name}",
        phase=phase,  # type: ignore[arg-type]
        module=named,
        source=construction_line(model, named) or shown(depth.first.op.spot),
        evidence={
            "way": _way(depth),
            "factors": ", ".join(f"{name} x{share:.2g}" for name, share in list(depth.shares.items())[:3]),
            "table": table(depth),
        },
        cause=_depth_cause(depth, activation),
        remedy=_depth_remedy(depth, activation),
    )


def _way(depth: Depth) -> str:
    """From which layer to which, and through how many calls of a recurrence."""
    through = f", through {depth.steps} calls of {depth.repeated.name}" if depth.repeated is not None else ""
    return f"{depth.last.name} back to {depth.first.name}{through}"


def culprit(depth: Depth) -> str:
    """The operation that has contributed most to the factor."""
    return next((name for name, share in depth.shares.items() if (share < 1) == depth.vanishes), "")


def _depth_cause(depth: Depth, name: str) -> str:
    per_layer = depth.shares.get(name, 1.0) ** (1 / depth.steps) if depth.shares.get(name, 0.0) > 0 else 0.0
    if not depth.vanishes:
        return "every layer multiplies the gradient on its way back, and no normalisation or skip connection bounds it"
    if name in ("sigmoid", "hardsigmoid"):
        return f"each sigmoid takes the gradient down x{per_layer:.2g} against the signal: its slope is at most 1/4"
    if name in ("tanh", "hardtanh"):
        return f"the tanh units are saturated: each layer of them passes on x{per_layer:.2g} of the gradient"
    if name in ("softmax",):
        return (
            f"the softmax passes on x{per_layer:.2g} of the gradient: it is all but one-hot, or what it weighs is all "
            "alike (rank collapse of attention without skip connections)"
        )
    if name in ("linear", "conv", "matmul", "conv_transpose"):
        return f"the weights are too small for this depth: each layer passes on x{per_layer:.2g} of the gradient"
    return f"{name or 'the way back'} passes on x{per_layer:.2g} of the gradient per layer, and nothing takes it back"


def _depth_remedy(depth: Depth, name: str) -> str:
    if not depth.vanishes:
        return "smaller initial weights (init.xavier_uniform_ or orthogonal_), normalisation, gates, or a clip"
    if name in ("sigmoid", "hardsigmoid", "tanh", "hardtanh"):
        return f"ReLU, LeakyReLU or ELU in place of {name}, residual connections, or BatchNorm/LayerNorm between layers"
    if name == "softmax":
        return "skip connections around the attention, scale the logits (1/sqrt(d_k)), or normalise what goes into them"
    return "init.kaiming_normal_(weight, nonlinearity='relu') or xavier, residual connections, or normalisation"


def table(depth: Depth) -> list[dict[str, Any]]:
    """The layers between the ends, the middle left out: size of the signal, of its gradient, and the factor from layer
    to layer towards the input."""
    inside = [
        layer
        for layer in depth.layers
        if layer in (depth.first, depth.last) or layer.op.index in (depth.first.below & depth.last.above)
    ]
    rows: list[dict[str, Any]] = []
    for layer, after in zip(inside, [*inside[1:], None], strict=True):
        mine, next_one = layer.op.sensitivity, None if after is None else after.op.sensitivity
        rows.append(
            {
                "layer": layer.name,
                "signal": layer.op.size,
                "gradient": layer.op.gradient,
                "factor": mine / next_one if mine and next_one else "",
            }
        )
    return collapsed(rows, "layer")


def collapsed(rows: Sequence[dict[str, Any]], key: str, most: int = _ROWS) -> list[dict[str, Any]]:
    """The first and last rows, with one that says how many are left out between."""
    if len(rows) <= most:
        return list(rows)
    head, tail = most // 3, most - most // 3 - 1
    gap = dict.fromkeys(rows[0], "") | {key: f"({len(rows) - head - tail} more)"}
    return [*rows[:head], gap, *rows[-tail:]]


# --- dead and saturated units


def _dead(trained: Trained) -> Iterator[Finding]:
    for dead in _units.dead_units(_usable(trained)):
        name = _units.layer_name(dead.feeds, trained.passes)
        what = "all" if dead.dead == dead.units else f"{dead.dead} of"
        where = name or dead.op.module or "the model"
        yield Finding(
            kind="dead-unit",
            message=f"{what} {dead.units} {dead.op.name} units behind {where} are dead",
            phase="forward",
            module=name or dead.op.module or None,
            op=dead.op.name,
            source=_unit_line(trained.model, name, dead.op),
            evidence={
                "dead": f"{dead.dead} of {dead.units} units are flat for all samples of {len(trained.passes)} batches",
                "input": _input_words(dead.op),
                **_optimizer_words(trained),
            },
            cause=_why_dead(dead.op),
            remedy="LeakyReLU or ELU, a bias of 0, a lower learning rate with warm-up, or normalisation before it",
        )


def _why_dead(op: Op) -> str:
    sized = [source.size for source in op.sources if source.size is not None]
    if sized and max(sized) == 0:
        return "what goes into them is exactly 0 for all the data: weights or a scale of zero before them"
    if op.top:
        return "what goes into them is beyond their upper end for all the data, where their slope is 0"
    return (
        "what goes into them is negative for all the data, so their slope is 0 and no gradient brings them back: a "
        "large negative bias, all-negative weights, or a step that was far too large"
    )


def _optimizer_words(trained: Trained) -> dict[str, Any]:
    return hyperparameters(trained.optimizers[0], None) if trained.optimizers else {}


def _input_words(op: Op) -> str | None:
    sized = [source.size for source in op.sources if source.size is not None]
    return f"root mean square {max(sized):.3g} before the activation" if sized else None


def _flat(trained: Trained) -> Iterator[Finding]:
    for flat in _units.flat_activations(_usable(trained)):
        name = _units.layer_name(flat.feeds, trained.passes)
        where = name or flat.op.module or "the model"
        softmax = flat.op.entropy is not None
        evidence: dict[str, Any] = {"input": _input_words(flat.op)}
        if softmax and flat.op.entropy is not None and flat.op.spread is not None:
            evidence["softmax"] = f"{flat.op.entropy:.2g} of the possible entropy, logits {flat.op.spread:.3g} apart"
        yield Finding(
            kind="vanishing-gradient",
            message=f"softmax behind {where} is one-hot: it passes no gradient"
            if softmax
            else f"{flat.op.name} behind {where} is saturated at {100 * flat.share:.0f} % of its values",
            phase="forward",
            module=name or flat.op.module or None,
            op=flat.op.name,
            source=_unit_line(trained.model, name, flat.op),
            evidence=evidence,
            cause="its logits are so far apart that each row is all but one-hot, where the softmax is flat"
            if softmax
            else f"what goes into {flat.op.name} is so large that its slope is under a hundredth of the largest: "
            "inputs that were never scaled, or too large weights",
            remedy="scale the logits (1/sqrt(d_k)), or normalise what goes into them"
            if softmax
            else "standardise the inputs, init.xavier_uniform_ for the weights, normalise before it, or use ReLU",
        )


def _usable(trained: Trained) -> list[Pass]:
    return [seen for seen in trained.passes if seen.failed is None]


def _unit_line(model: nn.Module, layer: str | None, op: Op) -> str | None:
    """The line of a functional activation; of a module the line that builds the layer before it."""
    functional = not (op.module and op.module != layer and _is_activation(model, op.module))
    built = construction_line(model, layer) if layer else None
    return (shown(op.spot) or built) if functional else (built or shown(op.spot))


def _is_activation(model: nn.Module, path: str) -> bool:
    module = dict(model.named_modules()).get(path)
    return module is not None and type(module).__module__.startswith("torch.nn")


# --- what is as it is


def notes(trained: Trained) -> list[str]:
    """What takes no part in the training, told as what it is: frozen, unused, or given gradients of nothing but 0."""
    named = dict(trained.model.named_parameters())
    histories = trained.run.parameters
    frozen = [name for name, parameter in named.items() if not parameter.requires_grad]
    measured = {name: [n for n in history.grad_norm if n is not None] for name, history in histories.items()}
    unused = [name for name, norms in measured.items() if not norms and name not in frozen]
    zero = [name for name, norms in measured.items() if norms and max(norms) == 0]
    foreign = [n for n, p in named.items() if n not in histories and p.requires_grad and p.grad is not None]
    told = [
        ("frozen", frozen),
        ("never got a gradient (unused, detached, or made under no_grad)", unused),
        ("got only zero gradients", zero),
        ("has gradients, and no optimizer steps it", foreign),
        ("has gradients, and its learning rate was 0 at every step", _without_rate(trained)),
        ("no step changed it, its dtype rounds the updates away", trained.stuck if only_rounding(trained) else []),
    ]
    unseen = next((seen.failed for seen in trained.passes if seen.failed), None)
    return [
        *(f"{what}: {several(names)}" for what, names in told if names and histories),
        *([f"depth, dead and flat units not judged, no pass could be observed: {unseen}"] if unseen else []),
    ]


def _without_rate(trained: Trained) -> list[str]:
    """The parameters that got gradients and were never moved, in groups whose learning rate is 0."""
    groups = (group for optimizer in trained.optimizers for group in optimizer.param_groups)
    still = {id(p) for group in groups if float(group.get("lr", 1.0)) == 0 for p in group["params"]}
    return [
        name
        for name, parameter in trained.model.named_parameters()
        if id(parameter) in still
        and (history := trained.run.parameters.get(name)) is not None
        and any(history.grad_norm)
        and not any(history.update_ratio)
    ]
