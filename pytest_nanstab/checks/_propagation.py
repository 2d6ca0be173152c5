"""What the first pass shows of a model's initial scale: weights that move the signal, and what depth does to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import nn

from pytest_nanstab.attribution.source import shown
from pytest_nanstab.checks import _schemes, _units
from pytest_nanstab.checks._consistency import Group
from pytest_nanstab.checks._construction import construction_line
from pytest_nanstab.checks._spread import Measured
from pytest_nanstab.checks._weights import View
from pytest_nanstab.checks.gradients import depth_finding, table
from pytest_nanstab.findings import Finding
from pytest_nanstab.propagation.depth import Depth, gradient_depth, layers_of, place, signal_depth
from pytest_nanstab.propagation.following import Follower, followers
from pytest_nanstab.propagation.passes import NORMS, PASSIVE, Op, Pass
from pytest_nanstab.ranks.sharding import gathered

# A weight enlarges what it is given by its root mean square times sqrt(fan_in). Recognised schemes stay within 2;
# what healthy programs make up themselves stays under 1 (`tests/test_calibration.py`); N(0, 1) gives sqrt(fan_in).
LARGE, SMALL = 3.0, 0.05
# The measured gain may be smaller, by what the inputs have in common; a result of about unit size needs no excuse.
MEASURED, UNIT = 0.6, 1.5
LARGE_BIAS, DROWNING = 3.0, 10.0
# What a bare N(0, 1) embedding may do as an output layer: logits of size sqrt(d) for d up to 64.
TIED = 8.0
# A bounded activation that is flat at more than this share of its values does not take a large weight back.
STILL_FREE = 0.3
# ... and the next layer gets a signal of at most so many times the size, where something does.
TAKEN_BACK = 2.5
RECURRENT = frozenset({"lstm", "gru", "rnn", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"})


class Weight(Protocol):
    """A weight that was measured and compared with the known schemes."""

    @property
    def view(self) -> View: ...
    @property
    def seen(self) -> Measured: ...
    @property
    def names(self) -> tuple[str, ...]: ...


def kept_apart(seen: Pass) -> frozenset[str]:
    """Parameters whose units cannot stay equal: each has a target, or rows of the data, of its own.

    That is so for output layers, behind which no other weight mixes the units, and for tables that are looked up.
    """
    mixed: set[int] = set()
    apart: dict[str, bool] = {}
    for op in reversed(seen.ops):
        own = op.name == "embedding" or op.index not in mixed
        apart.update({name: own and apart.get(name, True) for name in op.weights})
        if op.index in mixed or (op.weights and op.name not in NORMS):
            mixed.update(source.index for source in op.sources)
    return frozenset(name for name, own in apart.items() if own)


def signal_findings(model: nn.Module, weights: Sequence[Weight], seen: Pass) -> list[Finding]:
    """Values that are not finite, weights that move the signal, weights without gradient, attention that is one-hot,
    and what depth makes of signal and gradient: the first of these that there is, since it causes those after it."""
    born = _born(seen)
    if born is not None:
        layer = born.module or next(iter(born.weights), "")
        message = f"init scale: {layer or born.name} makes NaN or Inf in the first pass"
        return [_finding(model, layer, message, {}, source=shown(born.spot))]
    depths = _depths(model, seen)
    unscaled = moved(weights, seen)
    changed = [_moved_finding(model, unscaled)] if unscaled else []
    if changed and len(unscaled) * 2 >= len(layers_of(seen, frozen=True)):
        return changed  # what depth makes of them is their doing
    return (
        [*changed, *depths] or _silent(model, weights, seen) or _drowned(model, weights, seen) or _one_hot(model, seen)
    )


@dataclass(frozen=True)
class Excused:
    """Forgotten layers that the executed graph excuses.

    Attributes:
        moving: parameters with a scale of nobody's: what follows them is no scheme to be measured by.
        heads: last layers behind a normalisation, where scale hardly matters.
        last: all last layers.
        linear: layers that no non-linearity follows.
    """

    moving: frozenset[str] = frozenset()
    heads: frozenset[str] = frozenset()
    last: frozenset[str] = frozenset()
    linear: frozenset[str] = frozenset()

    def covers(self, group: Group) -> bool:
        """Whether nothing in a group is to be accused."""
        followers = set(group.parameters) - set(group.forgotten)
        if followers and len(followers & self.moving) * 2 > len(followers):
            return True
        # He's gain, or another above 1, is meant for the non-linearity behind a layer; these layers have none.
        meant = group.scheme.name.startswith(("kaiming", "orthogonal"))
        without = self.last | self.linear if meant else frozenset()
        return all(name in self.heads or name in without for name in group.forgotten)


def told_followers(weights: Sequence[Weight], seen: Pass) -> dict[str, str]:
    """By parameter, what follows it in the executed graph, in words."""
    return {parameter: follower.told() for parameter, follower in _followers_of(weights, seen)}


def _followers_of(weights: Sequence[Weight], seen: Pass) -> Iterator[tuple[str, Follower]]:
    """The parameters that the pass has used, each with what follows its first use."""
    follow = followers(seen)
    for weight in weights:
        op = next((op for op in seen.ops if op.mixes and _uses(op, weight.view)), None)
        if op is not None:
            yield weight.view.parameter, follow[op.index]


def excused(weights: Sequence[Weight], seen: Pass) -> Excused:
    """What the first pass tells about layers that kept torch's default."""
    layers = layers_of(seen, frozen=True)
    ends = [layer.op for layer in layers if not layer.below]
    last = frozenset().union(*(op.weights for op in ends)) if ends else frozenset()
    heads = [op.weights for op in ends if _normalised(op)]
    unscaled = [weight.view.parameter for weight in weights if not weight.names and _is_unscaled(weight)]
    return Excused(
        frozenset(item.weight.view.parameter for item in moved(weights, seen)) | frozenset(unscaled),
        frozenset().union(*heads) if heads else frozenset(),
        last,
        frozenset(name for name, follower in _followers_of(weights, seen) if follower.is_linear),
    )


def _is_unscaled(weight: Weight) -> bool:
    """Whether nobody should be told to follow a weight, even where a normalisation takes its scale back."""
    return not weight.seen.is_zero and not SMALL <= gain_of(weight.view) <= LARGE


def _normalised(op: Op) -> bool:
    """Whether what an operation is given comes straight out of a normalisation."""
    here = op
    while True:
        source = max(here.sources, key=lambda item: item.index, default=None)
        if source is None or source.name in NORMS or source.name not in PASSIVE:
            return source is not None and source.name in NORMS
        here = source


def _born(seen: Pass) -> Op | None:
    """Where the first NaN or +inf came from, when the result of the pass holds one: what is masked away is legal."""
    last = seen.ops[-1] if seen.ops else None
    if last is None or last.finite:
        return None
    born = next((op for op in seen.ops if op.clean and not op.finite), last)
    return born if born.inside else None  # what the loss makes of finite outputs is the training's to tell


# --- weights that no scheme explains


@dataclass(frozen=True)
class Moved:
    """A weight that changes the size of what it is given, and nothing takes it back."""

    weight: Weight
    op: Op
    gain: float
    follower: Follower


def gain_of(view: View) -> float:
    """What a weight multiplies the root mean square of independent inputs by."""
    values = view.values.detach().float()
    rms = float(values.square().mean().sqrt())
    return rms * math.sqrt(values[0].numel())


def moved(weights: Sequence[Weight], seen: Pass) -> list[Moved]:
    """Unexplained weights with a gain outside [1/20, 3] that no normalisation, and no stream beside, takes back."""
    follow, consumers, found = followers(seen), seen.consumers(), []
    for weight in weights:
        view = weight.view
        if not view.trainable or weight.seen.is_zero or (weight.names and not view.tied):
            continue
        calls = (op for op in seen.ops if op.mixes and not op.name.startswith("embedding") and _uses(op, view))
        op = next((op for op in calls if op.size_in), None)  # a recurrence begins with zeros
        if op is None:
            continue
        gain = gain_of(view)
        if weight.names and not (gain > TIED and weight.seen.std > 0.5):
            continue
        if (gain > LARGE and _enlarges(op) and not _shrunk_again(op, follow[op.index], consumers)) or (
            gain < SMALL and _lost(op, follow[op.index], consumers)
        ):
            found.append(Moved(weight, op, gain, follow[op.index]))
    return found


def _enlarges(op: Op) -> bool:
    """Whether the operation really makes the signal larger than it should be: its weight may be scaled or normalised on
    the way, and a look-up, or an average of rows, brings a small signal to the size of the rows."""
    if op.name in RECURRENT or not op.size or not op.size_in:
        return True
    return op.size > UNIT and op.size > MEASURED * LARGE * op.size_in


def used_parameters(seen: Pass) -> dict[str, tuple[int, bool]]:
    """The parameters that the pass has multiplied with: the last size of the result, and whether by a convolution."""
    found: dict[str, tuple[int, bool]] = {}
    for op in seen.ops:
        if op.name in ("linear", "matmul", "conv") and op.mixes and op.shape:
            for name in op.weights:
                found.setdefault(name, (op.shape[-1], op.name == "conv"))
    return found


def _uses(op: Op, view: View) -> bool:
    """Whether an operation multiplies with a view's parameter, or with what its parametrization makes of it."""
    if view.parameter in op.weights:
        return True
    prefix = f"{view.layer}.parametrizations." if view.layer else "parametrizations."
    return any(name.startswith(prefix) or name in (f"{view.parameter}_v", f"{view.parameter}_g") for name in op.weights)


def _ahead(op: Op, consumers: dict[int, list[Op]]) -> tuple[list[Op], Op | None]:
    """The operations between this one and the next that multiplies with weights, and that one."""
    waiting, known, between, after = [op], {op.index}, [], None
    while waiting:
        for other in consumers.get(waiting.pop(0).index, []):
            if other.index in known:
                continue
            known.add(other.index)
            if other.mixes:
                after = other if after is None or other.index < after.index else after
            else:
                between.append(other)
                waiting.append(other)
    limit = math.inf if after is None else after.index
    return [other for other in between if other.index < limit], after


def _shrunk_again(op: Op, follower: Follower, consumers: dict[int, list[Op]]) -> bool:
    if follower.normalises:
        return True
    if op.name in RECURRENT:
        return False  # the gates inside saturate unseen
    between, after = _ahead(op, consumers)
    if any(other.saturated is not None and other.saturated > STILL_FREE for other in between):
        return False
    if any(other.spread is not None and other.spread > _units.FRESH_APART for other in between):
        return False
    return after is not None and bool(after.size_in) and (after.size_in or 0.0) <= TAKEN_BACK * (op.size_in or 0.0)


def _lost(op: Op, follower: Follower, consumers: dict[int, list[Op]]) -> bool:
    """Whether what a small weight is given is lost behind it: by size, or under a bias that drowns it."""
    _, after = _ahead(op, consumers)
    if follower.normalises or after is None:
        return False  # a last layer often starts near zero
    if after.size_in is not None and after.size_in < SMALL * (op.size_in or 0.0):
        return True
    into = max((source.sensitivity or 0.0 for source in op.sources), default=0.0)
    return bool(op.sources) and op.sensitivity is not None and 0 < into < SMALL * op.sensitivity


def _moved_finding(model: nn.Module, found: Sequence[Moved]) -> Finding:
    first = found[0]
    view = first.weight.view
    scheme = _schemes.parse(scheme_for(first.follower))
    word = "enlarges" if first.gain > 1 else "shrinks"
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return _finding(
        model,
        view.layer,
        f"init scale: {view.name} {word} the signal x{first.gain:.3g}{others}",
        {
            "parameter": view.parameter,
            "next": first.follower.told(),
            "signal": f"root mean square {first.op.size_in:.3g} in, {first.op.size or 0:.3g} out",
            "table": [_moved_row(item) for item in found],
        },
        source=construction_line(model, view.parameter, initialised=True),
        cause=_why_moved(first.weight, scheme),
        remedy=remedy_for(scheme, view),
    )


def _why_moved(weight: Weight, scheme: _schemes.Scheme) -> str:
    name, mean, std = weight.view.name, weight.seen.mean, weight.seen.std
    usual = scheme.expected(weight.view)[0].std
    if abs(mean) > 0.3 * std:
        return (
            f"{name} has mean {mean:.4g} and std {std:.4g}, so what all inputs share is multiplied by their number; "
            f"{scheme.text} has mean 0 and std {usual:.4g}"
        )
    return (
        f"{name} has std {std:.4g}, which no known initialisation gives, and nothing behind it takes that back; "
        f"{scheme.text} would give {usual:.4g}"
    )


def remedy_for(scheme: _schemes.Scheme, view: View) -> str:
    """The line to change; of a packed weight each part by itself."""
    if not view.part:
        return scheme.remedy(view)
    parts = len(view.whole) // max(len(view.values), 1)
    call = scheme.call.format("part")
    return f"for part in {_schemes.attribute(view.parameter)}.chunk({parts}): {call}"


def _moved_row(item: Moved) -> dict[str, Any]:
    view = item.weight.view
    scheme = _schemes.parse(scheme_for(item.follower))
    expected = scheme.expected(view)[0].std
    return {
        "layer": layer_of(view),
        "shape": "x".join(map(str, view.values.shape)),
        "scheme": scheme.name,
        "expect": short(expected),
        "std": short(item.weight.seen.std),
        "ratio": short(item.weight.seen.std / expected),
        "verdict": "too large" if item.gain > 1 else "too small",
    }


def layer_of(view: View) -> str:
    """The name for a table: a layer's only weight goes by the layer's name."""
    return view.name.replace(".weight", "", 1) if view.parameter.endswith(".weight") and view.layer else view.name


def short(value: float) -> float:
    """Three digits: what a table of 80 columns has room for."""
    return float(f"{value:.3g}")


def scheme_for(follower: Follower) -> str:
    """The scheme that a layer in front of this non-linearity should have (He et al. 2015, Glorot & Bengio 2010, and
    Klambauer et al. 2017 for selu)."""
    kind = follower.nonlinearity
    if kind in ("relu", "leaky_relu"):
        return "kaiming_normal(nonlinearity='relu')"
    return "lecun_normal" if kind == "selu" else "xavier_uniform"


# --- weights without gradient, and attention that has decided


def _silent(model: nn.Module, weights: Sequence[Weight], seen: Pass) -> list[Finding]:
    """A weight of zeros that gets a gradient of zeros stays as it is: unlike a branch that only starts at zero, or one
    in front of a last layer of zeros, which learns first."""
    zeros = [weight.view.parameter for weight in weights if weight.seen.is_zero]
    if any(seen.gradients.get(name) for name in zeros):
        return []
    for weight in weights:
        view = weight.view
        if not weight.seen.is_zero or not view.trainable or seen.gradients.get(view.parameter) != 0.0:
            continue
        scheme = _schemes.parse("xavier_uniform")
        return [
            _finding(
                model,
                view.layer,
                f"init scale: {view.name} is all zeros and gets no gradient",
                {"parameter": view.parameter, "shape": list(view.values.shape)},
                cause="it is zero, and what surrounds it is zero too: its gradient is exactly 0, so it never learns",
                remedy=scheme.remedy(view),
            )
        ]
    return []


def _drowned(model: nn.Module, weights: Sequence[Weight], seen: Pass) -> list[Finding]:
    """A bias between layers most of which is larger than 3 and ten times what the weights make of the input: the layers
    behind see hardly anything else. A few units may be switched off by a sentinel, a last layer's bias is a prior, and
    a normalisation takes it away."""
    follow = followers(seen)
    named = dict(model.named_parameters())
    gains = {weight.view.layer: gain_of(weight.view) for weight in weights}
    for layer in layers_of(seen):
        op, name = layer.op, f"{layer.name}.bias"
        gain = gains.get(layer.name)
        if name not in named or gain is None or not layer.below or follow[op.index].normalises:
            continue
        size = float(gathered(named[name]).float().abs().median())
        rest = gain * (op.size_in or 0.0)
        if size > LARGE_BIAS and size > DROWNING * rest:
            return [
                _finding(
                    model,
                    layer.name,
                    f"init scale: {name} drowns the signal, x{size / max(rest, 1e-6 * size):.3g} its size",
                    {"parameter": name, "next": follow[op.index].told(), "bias": f"median magnitude {size:.3g}"},
                    source=construction_line(model, name, initialised=True),
                    cause="the bias is far larger than what the weights make of the input, so all samples look alike",
                    remedy=f"init.zeros_({_schemes.attribute(name)})",
                )
            ]
    return []


def _one_hot(model: nn.Module, seen: Pass) -> list[Finding]:
    """An attention, or another softmax between layers, that is one-hot before any training."""
    for flat in _units.flat_activations([seen], fresh=True):
        op = flat.op
        if op.entropy is None or op.spread is None:
            continue
        name = _units.layer_name(flat.feeds, [seen]) or op.module
        return [
            _finding(
                model,
                name,
                f"init scale: the softmax behind {name or 'the scores'} is one-hot, logits {op.spread:.3g} apart",
                {"entropy": f"{op.entropy:.2g} of the possible", "logits": f"{op.spread:.3g} apart within a row"},
                source=shown(op.spot),
                cause="the logits are so large that the softmax has decided before training, and passes no gradient",
                remedy="scale them by 1/sqrt(d_k), or initialise the projections with xavier_uniform_",
            )
        ]
    return []


# --- depth


def _depths(model: nn.Module, seen: Pass) -> list[Finding]:
    signal = signal_depth(seen)
    if signal is not None:
        return [_signal_finding(model, signal)]
    gradient = gradient_depth(seen) if seen.failed is None else None
    if gradient is None:
        return []
    found = depth_finding(model, gradient, kind="init-scale", phase="init")
    word = "vanishes" if gradient.vanishes else "explodes"
    message = f"init scale: the gradient {word} to {gradient.total:.1e} over {gradient.steps} layers"
    return [replace(found, message=message, evidence={**found.evidence, "depth": extrapolated(gradient)})]


def _signal_finding(model: nn.Module, depth: Depth) -> Finding:
    word = "vanishes" if depth.vanishes else "explodes"
    shrinks = "shrinks" if depth.vanishes else "enlarges"
    return _finding(
        model,
        place(depth),
        f"init scale: the signal {word} to {depth.total:.1e} over {depth.steps} layers",
        {"value": depth.total, "depth": extrapolated(depth), "table": table(depth)},
        cause=f"every layer on the way {shrinks} the signal x{depth.factor:.2g}, and nothing takes it back",
        remedy="initialise for the nonlinearity (kaiming for relu, xavier for tanh) or normalise between the layers",
    )


def extrapolated(depth: Depth) -> str:
    """ "x0.55 per layer, 6.4e-06 after 20": what twice the depth would make of it."""
    twice = 2 * depth.steps
    return (
        f"x{depth.factor:.2g} per layer, {depth.total:.1e} after {depth.steps}, {depth.factor**twice:.0e} after {twice}"
    )


def _finding(
    model: nn.Module,
    layer: str,
    message: str,
    evidence: dict[str, Any],
    *,
    source: str | None = None,
    cause: str | None = None,
    remedy: str | None = None,
) -> Finding:
    return Finding(
        kind="init-scale",
        message=message,
        phase="init",
        module=layer or None,
        source=source or construction_line(model, layer),
        evidence=evidence,
        cause=cause,
        remedy=remedy,
    )
