"""`assert_init_scale`: are the weights spread as their initialiser would, and does the signal survive?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from pytest_nanstab.checks import _consistency, _propagation, _schemes, _signal
from pytest_nanstab.checks._construction import construction_line
from pytest_nanstab.checks._leaves import tensor_leaf
from pytest_nanstab.checks._numbers import damage_of
from pytest_nanstab.checks._schemes import Scheme
from pytest_nanstab.checks._spread import Measured, equal_rows, measure
from pytest_nanstab.checks._state import evaluating
from pytest_nanstab.checks._weights import View, biases_of, view_used, views_of
from pytest_nanstab.checks.finite import finding_of
from pytest_nanstab.findings import Finding, error_from
from pytest_nanstab.propagation.summary import summary

Patterns = str | Iterable[str]
_NO_WEIGHTS = "model has no weight matrix to judge"
_SHOWN = 5  # healthy layers, for comparison
# Their matrices are judged part by part, or are no matrices of theirs.
_WITH_VIEWS = frozenset({"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "MultiheadAttention", "Linear"})
Loss = Callable[[nn.Module, Any], Any]


def assert_init_scale(
    model: nn.Module,
    scheme: str | Mapping[str, str] = "auto",
    *,
    batch: Any = None,
    loss: Loss | None = None,
    nonlinearity: str | None = None,
    gain: float | None = None,
    only: Patterns = (),
    skip: Patterns = (),
) -> None:
    """Fail when weights of a fresh model are not spread as their initialiser would.

    A named scheme is tested strictly: every weight matrix it applies to must have its mean and standard deviation, as
    an interval that allows for the number of values, at a false alarm rate of 1e-4 per model, plus 1 % of the standard
    deviation. Where torch.nn.init's fans for a stacked, grouped or transposed weight differ from the true ones of a
    part, both count as right. Embeddings may also keep torch's N(0, 1) under a scheme that needs fans: a look-up has
    none.

    "auto" recognises the scheme of each layer and fails for non-finite weights, equal output units, and layers that
    kept torch's default while at least 3 and 60 % of their type follow one other scheme; with `batch`, from
    one forward and backward pass, also for a weight that no scheme explains and whose gain leaves [1/20, 3] while
    nothing behind it takes that back, a signal or gradient that leaves [1/1000, 1000] over the depth, weights of zero
    without gradient, and attention that is one-hot; a last layer behind a normalisation, or one without the rectifier
    that the others' scheme is meant for, may keep its default. Zero and identity weights are accepted; torch's default
    by itself is never a fault. The thresholds are calibrated on healthy programs (`benchmarks/calibration.py`).

    Args:
        model: a model nobody has trained yet. It is run and left as it was.
        scheme: "auto", a name of torch.nn.init ("xavier_uniform", "kaiming_normal(fan_out)", "normal(0.02)"),
            "lecun_normal", "lecun_uniform", "torch_default", or a mapping of fnmatch patterns on module paths to these;
            the first that matches a module or its parents counts, and weights without one are not judged.
        batch: what one forward pass is run on: `model(batch)`, `model(*batch)` or `model(**batch)` by its type.
        loss: runs the forward pass instead, as `loss(model, batch)`.
        nonlinearity: for the gain, as in `torch.nn.init.calculate_gain`.
        gain: the gain itself.
        only: fnmatch patterns; when given, only these modules and their children are judged.
        skip: patterns of modules that are not judged.

    Raises:
        StabilityError: with kind "init-scale"; `NonFiniteError` with "nonfinite-parameter" when a weight is NaN or Inf.
        ValueError: an unknown scheme, a pattern that matches nothing, a model without weights, a batch with NaN.
    """
    __tracebackhide__ = True
    report = init_scale_report(
        model, scheme, batch=batch, loss=loss, nonlinearity=nonlinearity, gain=gain, only=only, skip=skip
    )
    if report.findings:
        raise error_from(report.findings)


@dataclass
class Report:
    """What the check found.

    Attributes:
        findings: the root cause first.
        notes: what signal and gradient do over the depth, and what attention and residual streams make of them.
    """

    findings: list[Finding]
    notes: list[str] = field(default_factory=list)


def init_scale_report(
    model: nn.Module,
    scheme: str | Mapping[str, str] = "auto",
    *,
    batch: Any = None,
    loss: Loss | None = None,
    nonlinearity: str | None = None,
    gain: float | None = None,
    only: Patterns = (),
    skip: Patterns = (),
) -> Report:
    """What `assert_init_scale` would raise, and notes on the first pass where "auto" made one."""
    if loss is not None and batch is None:
        raise TypeError("loss needs a batch to run on")
    watched = batch is not None and scheme == "auto"
    judged = _Judged(model, scheme, gain=gain, nonlinearity=nonlinearity, only=only, skip=skip, observed=watched)
    nonfinite = _nonfinite(model, judged)
    if nonfinite:  # the spread of NaN is no spread
        return Report(nonfinite)
    if batch is None or not judged.auto:
        with evaluating(model):
            return Report(judged.findings())
    _signal.check_finite(batch)
    seen = _signal.first_pass(model, batch, loss)
    judged.add_used(_propagation.used_parameters(seen))
    judged.next = _propagation.told_followers(judged.weights, seen)
    judged.apart = _propagation.kept_apart(seen)
    judged.excused = _propagation.excused(judged.weights, seen)
    with evaluating(model):
        findings = judged.findings()
    return Report(findings + _propagation.signal_findings(model, judged.weights, seen), summary(seen))


def init_scale_rows(
    model: nn.Module,
    scheme: str | Mapping[str, str] = "auto",
    *,
    nonlinearity: str | None = None,
    gain: float | None = None,
    only: Patterns = (),
    skip: Patterns = (),
) -> list[dict[str, Any]]:
    """One row per judged weight matrix, for reports.

    Keys: layer, shape, scheme, expected_std, measured_std, ratio and verdict; None where a std means nothing. A bias
    that is neither zero nor torch's default is a row with the verdict "note".
    """
    judged = _Judged(
        model, scheme, gain=gain, nonlinearity=nonlinearity, only=only, skip=skip, observed=scheme == "auto"
    )
    with evaluating(model):
        return [*judged.rows(), *_bias_rows(model, judged)]


@dataclass(frozen=True, eq=False)
class _Weight:
    """A judged weight: what it is, what was measured, what it should be."""

    view: View
    seen: Measured
    scheme: Scheme | None
    names: tuple[str, ...]
    verdict: str

    @property
    def ok(self) -> bool:
        return self.verdict in _consistency.HEALTHY

    def row(self) -> dict[str, Any]:
        view, expected = self.view, self._expected()
        return {
            "layer": view.name,
            "shape": "x".join(map(str, view.values.shape)),
            "scheme": self._scheme_text(),
            "expected_std": expected,
            "measured_std": self.seen.std,
            "ratio": self.seen.std / expected if expected else None,
            "verdict": self.verdict,
        }

    def _scheme_text(self) -> str:
        known = self.scheme or _consistency.scheme_of(self.names, self.seen)
        return known.text if known else ", ".join(self.names) or "none"

    def _expected(self) -> float | None:
        """The closest of the stds that count as right."""
        scheme = self.scheme or _consistency.scheme_of(self.names, self.seen)
        stds = [expected.std for expected in scheme.expected(self.view)] if scheme else []
        return min(stds, key=lambda std: abs(std - self.seen.std), default=None)


class _Judged:
    """The selected weights of a model under a scheme."""

    def __init__(
        self,
        model: nn.Module,
        scheme: str | Mapping[str, str],
        *,
        gain: float | None,
        nonlinearity: str | None,
        only: Patterns,
        skip: Patterns,
        observed: bool = False,
    ) -> None:
        self.observed = observed  # whether a pass may show matrices that no known layer holds
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if gain is not None and nonlinearity is not None:
            raise TypeError("give gain or nonlinearity, not both: the gain follows from the nonlinearity")
        _check_gain(gain)
        self.model, self.auto, self.depths = model, scheme == "auto", _consistency.depths_of(model)
        self.named = scheme if isinstance(scheme, str) else None
        pairs = scheme if isinstance(scheme, Mapping) else {"*": scheme}
        if nonlinearity is not None:
            _schemes.gain_of(nonlinearity)
        self.schemes = (
            []
            if self.auto
            else [
                (pattern, _schemes.parse(text, gain=gain, nonlinearity=nonlinearity)) for pattern, text in pairs.items()
            ]
        )
        self.excused = _propagation.Excused()
        self.apart: frozenset[str] = frozenset()
        self.next: dict[str, str] = {}  # by parameter: what follows it, and how that is known
        self.only, self.skip = _patterns("only", only), _patterns("skip", skip)
        with evaluating(model):
            self.weights = self._judge(self._selected(views_of(model)))

    def _selected(self, views: list[View]) -> list[View]:
        if not views and self.observed:
            return []
        if not views:
            raise ValueError(_NO_WEIGHTS)
        patterns = [*self.only, *self.skip, *(pattern for pattern, _ in self.schemes if pattern != "*")]
        for pattern in patterns:
            if not any(_matches(view.parameter, [pattern]) for view in views):
                layers = ", ".join(dict.fromkeys(view.layer for view in views))
                raise ValueError(f"pattern {pattern!r} matches no layer with weights; there are {layers}")
        chosen = [view for view in views if self.covers(view.parameter)]
        if not chosen:
            raise ValueError("only and skip leave no weight matrix to judge")
        return chosen

    def add_used(self, used: Mapping[str, tuple[int, bool]]) -> None:
        """Judge matrices of the user's own as well that a pass has multiplied with, whatever they are called."""
        known = {view.parameter for view in views_of(self.model)}
        fresh = [name for name in used if name not in known and self.covers(name) and ".parametrizations." not in name]
        views = [view_used(self.model, name, used[name][0], channels=used[name][1]) for name in fresh]
        self.weights += self._judge([view for view in views if view is not None and view.kind not in _WITH_VIEWS])
        if not self.weights:
            raise ValueError(_NO_WEIGHTS)

    def covers(self, parameter: str) -> bool:
        """Whether a parameter is selected by `only` and `skip`."""
        return (not self.only or _matches(parameter, self.only)) and not _matches(parameter, self.skip)

    def _judge(self, views: list[View]) -> list[_Weight]:
        tests, weights = len(views), []
        for view in views:
            seen = measure(view.values)
            scheme = next((scheme for pattern, scheme in self.schemes if _matches(view.parameter, [pattern])), None)
            names = () if scheme else tuple(_schemes.recognised(view, seen, tests=tests, depths=self.depths))
            weights.append(_Weight(view, seen, scheme, names, _verdict(view, seen, scheme, tests)))
        return [weight for weight in weights if self.auto or weight.scheme is not None]

    def rows(self) -> list[dict[str, Any]]:
        """One row per weight matrix; those kept at torch's default among others say so."""
        forgotten = self._forgotten()
        rows = [weight.row() for weight in self.weights]
        for weight, row in zip(self.weights, rows, strict=True):
            group = forgotten.get(weight.view.parameter)
            if group is not None:
                scheme = group.scheme
                expected = min((item.std for item in scheme.expected(weight.view)), default=None)
                row.update(scheme=scheme.text, expected_std=expected, verdict="default")
                row["ratio"] = weight.seen.std / expected if expected else None
        return rows

    def _forgotten(self) -> dict[str, _consistency.Group]:
        return {parameter: group for group in self._groups() for parameter in group.forgotten}

    def _groups(self) -> list[_consistency.Group]:
        """The groups with forgotten layers, without what the executed graph excuses."""
        groups = _consistency.groups_of(self.weights, self.depths) if self.auto else []
        return [group for group in groups if not self.excused.covers(group)]

    def findings(self) -> list[Finding]:
        """Equal units first, then wrong spreads."""
        equal = [w for w in self.weights if w.verdict == "equal rows" and w.view.parameter not in self.apart]
        findings = [self._equal(weight) for weight in equal[:10]]
        return findings + (self._auto_findings() if self.auto else self._scheme_findings())

    def _equal(self, weight: _Weight) -> Finding:
        view = weight.view
        scheme = weight.scheme or _schemes.parse("xavier_uniform")
        return Finding(
            kind="init-scale",
            message=f"init scale: all output units of {view.name} are equal",
            phase="init",
            module=view.layer or None,
            source=construction_line(self.model, view.layer),
            evidence={"parameter": view.parameter, "shape": list(view.values.shape), "value": weight.seen.mean},
            cause="units with equal weights get equal gradients and stay equal: the layer learns one feature",
            remedy=scheme.remedy(view),
        )

    def _scheme_findings(self) -> list[Finding]:
        wrong = [weight for weight in self.weights if not weight.ok and weight.verdict != "equal rows"]
        if not wrong:
            return []
        follow = f"are not {self.named}" if self.named else "do not follow their scheme"
        first = wrong[0]
        assert first.scheme is not None
        finding = self._finding(first, first.scheme, _parameters(wrong), _parameters(self.weights), follow)
        return [finding]

    def _auto_findings(self) -> list[Finding]:
        found = []
        for group in self._groups():
            weights = {weight.view.parameter: weight for weight in reversed(self.weights)}
            first = weights[group.forgotten[0]]
            found.append(self._forgotten_finding(first, group))
        return found

    def _forgotten_finding(self, first: _Weight, group: _consistency.Group) -> Finding:
        """Which layers were forgotten is said first; what the others follow stands in the table and the cause."""
        found = self._finding(first, group.scheme, group.forgotten, group.parameters, "")
        count, rest = len(group.forgotten), len(group.parameters) - len(group.forgotten)
        names = first.view.layer or first.view.parameter
        others = f" and {count - 1} more" if count > 1 else ""
        told = f"{rest} of {len(group.parameters)} weights of its kind follow {group.scheme.text}"
        return replace(
            found,
            message=f"init scale: {names}{others} kept torch's default",
            evidence={**({"forgotten": list(group.forgotten)} if others else {}), "others": told, **found.evidence},
        )

    def _finding(
        self, first: _Weight, scheme: Scheme, wrong: Sequence[str], all_of: Sequence[str], what: str
    ) -> Finding:
        view = first.view
        rows = [row for row in self.rows() if row["layer"].partition("[")[0] in set(all_of)]
        healthy = [row for row in rows if row["verdict"] in _consistency.HEALTHY]
        return Finding(
            kind="init-scale",
            message=f"init scale: {len(wrong)} of {len(all_of)} weights {what if len(wrong) > 1 else _singular(what)}",
            phase="init",
            module=view.layer or None,
            source=construction_line(self.model, view.parameter, initialised=True),
            evidence={
                "parameter": view.parameter,
                "next": self.next.get(view.parameter),
                "table": [_short_row(row) for row in [*(row for row in rows if row not in healthy), *healthy[:_SHOWN]]],
                "note": _bias_notes(self.model, self),
            },
            cause=_cause(first, scheme),
            remedy=scheme.remedy(view),
        )


def _short_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a table of 80 columns."""
    numbers = {"expect": row["expected_std"], "std": row["measured_std"], "ratio": row["ratio"]}
    shown = {name: "" if number is None else _propagation.short(number) for name, number in numbers.items()}
    layer = row["layer"].replace(".weight", "", 1)
    return {"layer": layer, "shape": row["shape"], "scheme": row["scheme"], **shown, "verdict": row["verdict"]}


def _check_gain(gain: object) -> None:
    if gain is None:
        return
    if isinstance(gain, bool) or not isinstance(gain, (int, float)):
        raise TypeError(f"gain must be a number, got {gain!r}")
    if not 0 < gain < float("inf"):
        raise ValueError(f"gain must be positive and finite, got {gain!r}")


def _patterns(name: str, given: Patterns) -> list[str]:
    patterns = [given] if isinstance(given, str) else list(given)
    wrong = [pattern for pattern in patterns if not isinstance(pattern, str)]
    if wrong:
        raise TypeError(f"{name} must be fnmatch patterns on module paths, got {wrong[0]!r}")
    return patterns


def _matches(parameter: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches the parameter, its module or a module above it."""
    parts = parameter.split(".")
    paths = [".".join(parts[:count]) for count in range(len(parts) + 1)]
    return any(fnmatchcase(path, pattern) for pattern in patterns for path in paths if path or pattern == "*")


def _parameters(weights: Iterable[_Weight]) -> list[str]:
    return list(dict.fromkeys(weight.view.parameter for weight in weights))


def _singular(what: str) -> str:
    return what.replace("are not", "is not", 1).replace("do not follow their", "does not follow its", 1)


def _verdict(view: View, seen: Measured, scheme: Scheme | None, tests: int) -> str:
    if not math.isfinite(seen.std):
        return "not finite"
    if view.trainable and not seen.is_zero and _has_units(view) and equal_rows(view.values, view.groups):
        return "equal rows"
    return "ok" if scheme is None else _scheme_verdict(view, seen, scheme, tests)


def _scheme_verdict(view: View, seen: Measured, scheme: Scheme, tests: int) -> str:
    expected = scheme.expected(view)
    if not expected:
        return "not judged"
    if scheme.explains(view, seen, tests=tests):
        return "ok"
    if _schemes.parse("torch_default").explains(view, seen, tests=tests):
        return "default (ok)" if scheme.needs_fans and view.kind == "Embedding" else "default"
    return _how(seen, scheme, min(item.std for item in expected))


def _has_units(view: View) -> bool:
    """Whether equal rows mean equal units: known layers, not matrices of the user's own making."""
    return bool(view.defaults)


def _how(seen: Measured, scheme: Scheme, expected: float) -> str:
    if seen.is_zero:
        return "zero"
    if not 0.98 < seen.std / expected < 1.02 if expected else True:
        return "too small" if seen.std < expected else "too large"
    return "not orthogonal" if scheme.name == "orthogonal" else "wrong mean or spread"


def _cause(weight: _Weight, scheme: Scheme) -> str:
    name, std = weight.view.name, weight.seen.std
    expected = min((item.std for item in scheme.expected(weight.view)), key=lambda value: abs(value - std), default=0.0)
    meant = f"{scheme.text} gives {expected:.4g}"
    if weight.verdict == "default" or "torch_default" in weight.names:
        return f"{name} kept torch's default initialisation, std {std:.4g}; {meant}"
    if abs(weight.seen.mean) > 0.1 * std and std > 0:
        return f"{name} has mean {weight.seen.mean:.4g} and std {std:.4g}; {meant} around 0"
    return f"{name} has std {std:.4g}; {meant}"


# --- non-finite weights and biases


def _nonfinite(model: nn.Module, judged: _Judged) -> list[Finding]:
    found = []
    for name, parameter in model.named_parameters():
        if not judged.covers(name):
            continue
        leaf = tensor_leaf(parameter, name, name, "nonfinite-parameter", module=name)
        damage = damage_of(leaf)
        if damage is not None:
            finding = finding_of(leaf, damage, source=construction_line(model, name))
            found.append(
                replace(
                    finding,
                    cause="it holds memory of torch.empty that no initialisation has written, or what an "
                    "initialisation that divided by zero has",
                    remedy=f"write it where it is made, e.g. init.zeros_({_schemes.attribute(name)})",
                )
            )
    return found[:20]


def _bias_rows(model: nn.Module, judged: _Judged) -> list[dict[str, Any]]:
    rows = []
    for bias in biases_of(model):
        if not judged.covers(bias.parameter):
            continue
        seen = measure(bias.values)
        if seen.is_zero or (bias.bound is not None and seen.largest <= bias.bound * 1.001):
            continue
        row: dict[str, Any] = {"layer": bias.parameter, "shape": str(len(bias.values)), "scheme": "zeros"}
        rows.append({**row, "expected_std": 0.0, "measured_std": seen.std, "ratio": None, "verdict": "note"})
    return rows


def _bias_notes(model: nn.Module, judged: _Judged) -> list[str]:
    names = [row["layer"] for row in _bias_rows(model, judged)]
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"neither zero nor torch's default, and not judged: {', '.join(names[:3])}{more}"]
