"""The finding of a sink, retold with its origin: operation, module, line, operands, chain, cause and remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_nanstab.attribution import constructions, optimizers
from pytest_nanstab.attribution.case import Case
from pytest_nanstab.attribution.causes import advice_for
from pytest_nanstab.attribution.growth import Explosion
from pytest_nanstab.attribution.history import Bad, Made
from pytest_nanstab.attribution.origin import (
    Origin,
    chain_of,
    first_use,
    home_of,
    is_intended,
    line_of,
    origin_of,
    title,
)
from pytest_nanstab.attribution.rates import bad_rate_set_at
from pytest_nanstab.attribution.source import is_users_own, shown
from pytest_nanstab.attribution.wording import details_of
from pytest_nanstab.findings import Finding, Kind
from pytest_nanstab.watching.verdicts import KEPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_nanstab.attribution.numpy_errors import Complaint
    from pytest_nanstab.watching.names import Names

_OUT_OF = re.compile(r", out of [^,]+$")
# What the sink's own evidence says about its tensor, and the origin says better.
_REPLACED = ("tensor", "value", "dtype", "shape", "count", "of", "nan", "inf", "negative_inf", "first_index", "range")
_OF_PLACES = ("range", "columns", "column_count", "row_count")  # of a result; the data's own are told apart
_CHAIN_ENDS = 7
# numpy's words for what it met (numpy.seterr), in ours, and what to do.
_NUMPY = {
    "invalid value": (
        "an invalid value (0 / 0, inf - inf, a root or logarithm of a negative number)",
        "guard that line: where a divisor or spread is 0 divide by 1, clamp what goes into a root or a logarithm",
    ),
    "divide by zero": (
        "a division by zero or the logarithm of 0",
        "guard that line: a floor under the divisor or argument",
    ),
    "overflow": ("an overflow", "compute that line in float64, or scale what goes into it"),
}
_OF_DATA = ("nonfinite-loss", "nonfinite-input", "nonfinite-output")
_SINKS = {
    "nonfinite-loss": "loss",
    "nonfinite-output": "output",
    "nonfinite-gradient": "gradient of {parameter}",
    "nonfinite-parameter": "{parameter}",
    "nonfinite-buffer": "{buffer}",
    "nonfinite-optimizer-state": "{tensor}",
    "nonfinite-input": "{field}",
}


@dataclass(frozen=True)
class Known:
    """What else is known when a finding is retold."""

    names: Names
    batch_size: int | None = None
    explosion: Explosion | None = None
    optimizers: Sequence[Any] = ()  # those that took part
    outlier: str | None = None  # a value of an earlier batch that no other batch comes near


def retold(finding: Finding, origin: Origin, known: Known) -> Finding:
    """The finding with everything its origin tells."""
    origin = _past_masks(origin, known)
    guilty = origin.guilty
    if _came_in(guilty) or (finding.kind == "nonfinite-input" and _is_stated(origin)):
        return _from_elsewhere(finding, origin, known)
    if known.explosion is not None and guilty.bad_overflows and guilty.phase != "optimizer":
        return _exploding(finding, origin, known, known.explosion)
    if guilty.phase == "optimizer":
        return _by_optimizer(finding, origin, known)
    return _by_operation(finding, origin, known)


def _past_masks(origin: Origin, known: Known) -> Origin:
    """The origin, if a buffer that holds nothing bad but -inf is none: it is a mask, and meant."""
    bad = origin.guilty.bad
    if bad is None or bad.kind != "outside" or bad.tensor is None or bad.nan or bad.intended:
        return origin
    is_mask = bad.facts.get("negative_inf") == bad.facts.get("inf")
    kind, name = known.names.owned(bad.tensor) or ("", "")
    if not is_mask or kind != "buffer":
        return origin
    bad.intended, bad.name = True, name
    return origin_of(origin.sink)


def _from_elsewhere(finding: Finding, origin: Origin, known: Known) -> Finding:
    """The bad value was there before any operation: in the data, in something kept, or written into the program."""
    guilty = origin.guilty
    if finding.kind == "nonfinite-gradient" and len(origin.path) > 1:
        return _masked_too_late(finding, origin, known)
    if guilty.bad is not None and guilty.bad.kind == "outside":
        return _outside(finding, origin, known)
    if finding.kind == "nonfinite-input" and _is_stated(origin):
        # An infinity that the program states is no mask where a model is fed with it.
        stated = origin.intended or guilty
        return _from_numbers(finding, Origin(stated, (stated,)))
    return _from_numbers(finding, origin) if finding.kind in _OF_DATA else _by_operation(finding, origin, known)


def _is_stated(origin: Origin) -> bool:
    return origin.intended is not None or is_intended(origin.guilty)


# -- the four stories --------------------------------------------------------------------------------------------------


def _by_operation(finding: Finding, origin: Origin, known: Known) -> Finding:
    guilty = origin.guilty
    module, kind = _module(guilty, known)
    finding = _at_its_step(finding, guilty)
    told = replace(
        finding,
        message=f"{_OUT_OF.sub('', finding.message)}, born in {_home(guilty, module)}{_earlier(finding, guilty)}",
        module=module if module is not None or finding.kind != "nonfinite-parameter" else finding.module,
        op=title(guilty),
        source=shown(line_of(guilty)) or finding.source,
        evidence={
            **_rest(finding),
            **_facts(origin, known, kind),
            **(_outlier(known) if guilty.bad_overflows else {}),
            **_way(finding, origin),
        },
    )
    if finding.phase == "init":
        return replace(
            told,
            cause="it was initialised with values that are not finite",
            remedy="initialise every parameter (torch.nn.init); torch.empty is uninitialised memory",
        )
    advice = advice_for(Case(origin))
    # Without advice on the operation, what the sink itself says stands.
    return told if advice is None else replace(told, cause=advice.cause, remedy=advice.remedy)


def _at_its_step(finding: Finding, guilty: Made) -> Finding:
    """A parameter that a forward pass has written to broke in that step, not in the optimizer step before."""
    if finding.kind != "nonfinite-parameter" or guilty.phase == "optimizer" or finding.step in (None, guilty.step):
        return finding
    name = finding.evidence.get("parameter", "a parameter")
    return replace(finding, message=f"{_word(guilty)} in {name} at step {guilty.step}", step=guilty.step)


def _earlier(finding: Finding, guilty: Made) -> str:
    """Where something bad was kept for some steps: since when."""
    earlier = finding.step is not None and guilty.step < finding.step and guilty.phase != "optimizer"
    return f" at step {guilty.step}" if earlier else ""


def _came_in(guilty: Made) -> bool:
    return guilty.bad is not None and (guilty.bad.kind == "outside" or guilty.aten == "lift_fresh")


def _masked_too_late(finding: Finding, origin: Origin, known: Known) -> Finding:
    """A missing value that the loss leaves out, but not its gradient: blame the operation that was given it."""
    guilty, index = origin.guilty, first_use(origin.path)
    first = origin.path[index]
    owned = None if guilty.bad is None or guilty.bad.tensor is None else known.names.owned(guilty.bad.tensor)
    if owned is not None or first.bad is None:
        return _outside(finding, origin, known)
    told = _by_operation(finding, Origin(first, origin.path[index:], origin.others), known)
    place = shown(line_of(guilty))
    name = guilty.bad.name if guilty.bad is not None else None
    return replace(
        told,
        evidence={
            **told.evidence,
            "missing": f"{_word(guilty)} in {name or 'the data'}{f', {place}' if place else ''}",
        },
        cause="a missing value (label, target) is masked only after it was used: its value is left out, but 0 * NaN "
        "stays in the gradient",
        remedy="replace missing values before they are used: torch.where(ok, target, prediction.detach())",
    )


def _by_optimizer(finding: Finding, origin: Origin, known: Known) -> Finding:
    guilty = origin.guilty
    custom = guilty.place.function is not None and is_users_own(guilty.by)
    story = (advice_for(Case(origin)) if custom else None) or optimizers.story_of(origin)
    constructed = bad_rate_set_at(guilty.by) or constructions.line_of(guilty.by)
    spot = line_of(guilty) if custom or constructed is None else constructed
    return replace(
        finding,
        message=f"{_OUT_OF.sub('', finding.message)}, made by {type(guilty.by).__name__}",
        op=title(guilty),
        source=shown(spot) or finding.source,
        evidence={**_rest(finding), **_facts(origin, known, None), **_way(finding, origin)},
        cause=finding.cause or story.cause,
        remedy=finding.remedy or story.remedy,
    )


def _exploding(finding: Finding, origin: Origin, known: Known, explosion: Explosion) -> Finding:
    module, kind = _module(origin.guilty, known)
    lines = [constructions.line_of(optimizer) for optimizer in known.optimizers]
    constructed = [line for line in lines if line is not None]
    first = shown(line_of(origin.guilty))
    place = f" at {first}" if first else ""
    grown = (
        f"{explosion.what} {explosion.first:.3g} at step {explosion.first_step}, {explosion.last:.3g} at step "
        f"{explosion.last_step}: x{explosion.per_step:.3g} per step"
    )
    evidence = {
        **_rest(finding),
        **_facts(origin, known, kind),
        "growth": grown,
        "first overflow": f"{title(origin.guilty)}{place}",
        **_outlier(known),
        **_way(finding, origin),
    }
    if explosion.rows:
        evidence["table"] = [dict(row) for row in explosion.rows]
    return replace(
        finding,
        message=f"{_OUT_OF.sub('', finding.message)}, exploding since step {explosion.first_step}",
        module=module,
        op=title(origin.guilty),
        source=shown(constructed[-1]) if len(constructed) == 1 else first or finding.source,
        evidence=evidence,
        cause=f"exploding: the {explosion.what} grew in every step until {title(origin.guilty)} overflowed; "
        + ("the updates overshoot" if known.outlier is None else "an outlier in the data came before"),
        remedy=("" if known.outlier is None else "look at that value of the data first; ")
        + "lower the learning rate (or warm it up), clip the gradient norm between backward() and step(), or scale the "
        "inputs",
    )


def _outside(finding: Finding, origin: Origin, known: Known) -> Finding:
    """The bad value was there before: in a parameter, a buffer, the data, or a tensor kept from earlier."""
    guilty, bad = origin.guilty, origin.guilty.bad
    assert bad is not None
    owned = None if bad.tensor is None else known.names.owned(bad.tensor)
    consumer = origin.path[1] if len(origin.path) > 1 else None
    spot = line_of(consumer) if consumer is not None else guilty.place.spot
    facts = {**bad.facts, **_rows(bad)}
    if owned is not None:
        # The sink's own finding about parameters and buffers says more than this record can.
        if finding.kind in ("nonfinite-parameter", "nonfinite-buffer"):
            return replace(finding, source=finding.source or shown(spot))
        kind: Kind = "nonfinite-buffer" if owned[0] == "buffer" else "nonfinite-parameter"
        return replace(
            finding,
            kind=kind,
            message=f"{_word(guilty)} in {owned[1]}, used at step {guilty.step}",
            phase="forward",
            module=owned[1].rpartition(".")[0] or finding.module,
            source=shown(spot) or finding.source,
            evidence={**_rest(finding), owned[0]: owned[1], "tensor": owned[1], **facts, **_way(finding, origin)},
            cause=f"the {owned[0]} was not finite before this step used it",
            remedy="look at how it is initialised, loaded or updated",
        )
    if finding.kind == "nonfinite-input":
        first = {"first used": shown(spot)} if spot is not None and shown(spot) != finding.source else {}
        return replace(finding, source=finding.source or shown(spot), evidence={**finding.evidence, **first})
    if finding.kind != "nonfinite-loss":
        return finding
    if len(origin.path) == 1 or (bad.tensor is not None and bad.tensor.grad_fn is not None):
        note = "it was computed where no operation is traced (another thread, a compiled or an opaque extension)"
        return replace(finding, evidence={**finding.evidence, "note": note})
    return _data(finding, origin, name=bad.name or "a tensor", facts=facts, source=shown(spot))


def _from_numbers(finding: Finding, origin: Origin) -> Finding:
    """Numbers that came from Python or numpy and were bad before torch saw them."""
    guilty = origin.guilty
    assert guilty.bad is not None
    facts = {**guilty.bad.facts, **_rows(guilty.bad)}
    first = shown(line_of(guilty))
    if finding.kind == "nonfinite-input":
        told = replace(finding, source=finding.source or first)
    else:
        used = line_of(origin.path[1]) if len(origin.path) > 1 else None
        told = _data(finding, origin, name="numbers from Python or numpy", facts=facts, source=shown(used) or first)
    if first is not None and first != told.source:
        told = replace(told, evidence={**told.evidence, "converted at": first})
    return _by_numpy(told, guilty.bad.before, is_sure=guilty.bad.is_sure)


def _by_numpy(finding: Finding, complaints: Sequence[Complaint], *, is_sure: bool) -> Finding:
    """What numpy complained of is where the values were made, if it did so in the call that made a tensor of them."""
    if not complaints:
        return finding
    told = [f"{complaint.word} at {shown(complaint.spot)}" for complaint in complaints[:3]]
    if not is_sure:
        return replace(finding, evidence={**finding.evidence, "numpy warned": told})
    cause, remedy = _NUMPY[complaints[0].word]
    return replace(
        finding,
        source=shown(complaints[0].spot),
        evidence={**finding.evidence, "used at": finding.source, "numpy warned": told},
        cause=f"numpy met {cause} there, before the values became a tensor",
        remedy=remedy,
    )


def _data(finding: Finding, origin: Origin, *, name: str, facts: dict[str, Any], source: str | None) -> Finding:
    step = f" of step {finding.step}" if finding.step is not None else ""
    batch = {"batch": finding.evidence["backward"]} if "backward" in finding.evidence else {}
    return replace(
        finding,
        kind="nonfinite-input",
        message=f"{_word(origin.guilty)} in the data{step}, {name}",
        phase="data",
        source=source or finding.source,
        evidence={**batch, **_rest(finding), "tensor": name, "field": name, **facts, **_way(finding, origin)},
        cause=KEPT,
        remedy="reject or repair it where the batch is made; assert_finite_batches(loader) finds every such row",
    )


# -- their parts -------------------------------------------------------------------------------------------------------


def _word(made: Made) -> str:
    return "NaN" if made.bad_nan else "Inf"


def _rest(finding: Finding) -> dict[str, Any]:
    return {key: value for key, value in finding.evidence.items() if key not in _REPLACED}


def _facts(origin: Origin, known: Known, module_class: str | None) -> dict[str, Any]:
    guilty = origin.guilty
    bad = guilty.bad
    assert bad is not None
    facts: dict[str, Any] = {key: value for key, value in bad.facts.items() if key not in _OF_PLACES}
    if module_class is not None:
        facts["module_class"] = module_class
    if guilty.place.library is not None:
        facts["library"] = shown(guilty.place.library)
    details = details_of(guilty)
    if details:
        facts["detail"] = details
    shape = bad.facts.get("shape") or []
    if bad.rows and shape and shape[0] == known.batch_size:
        facts |= _rows(bad)
    return facts


def _outlier(known: Known) -> dict[str, str]:
    return {} if known.outlier is None else {"outlier": known.outlier}


def _way(finding: Finding, origin: Origin) -> dict[str, Any]:
    """The chain to the sink, the intended infinity behind it, and what else reached it."""
    chain = _folded(chain_of(origin.path))
    sink = _SINKS.get(finding.kind)
    if sink is not None:
        named = {key: finding.evidence.get(key) or key for key in ("parameter", "buffer", "tensor", "field")}
        chain = [*chain, sink.format(**named)] if chain[-1:] != [sink.format(**named)] else chain
    way: dict[str, Any] = {"chain": chain}
    if origin.intended is not None:
        place = shown(line_of(origin.intended))
        way["infinity"] = f"from {title(origin.intended)}{f' at {place}' if place else ''}"
    if origin.others:
        also = [f"{title(made)} at {shown(line_of(made))}" for made in origin.others[:3]]
        way["as well"] = also
    return way


def _folded(chain: list[str]) -> list[str]:
    """A long chain without its middle: a state carried over many steps repeats itself."""
    left_out = len(chain) - 2 * _CHAIN_ENDS
    return chain if left_out < 2 else [*chain[:_CHAIN_ENDS], f"({left_out} more)", *chain[-_CHAIN_ENDS:]]


def _rows(bad: Bad) -> dict[str, Any]:
    count = bad.facts.get("row_count")
    return {"rows": list(bad.rows), **({"row_count": count} if count else {})} if bad.rows else {}


def _module(made: Made, known: Known) -> tuple[str | None, str | None]:
    """(path, class) of the innermost module in which an operation ran."""
    module = home_of(made, written_out=True).module
    if module is None:
        return None, None
    path, kind = known.names.path(module), type(module).__name__
    return path, (kind if path != kind else None)


def _home(made: Made, module: str | None) -> str:
    """What a message calls the place: the module, else the user's function, else the operation."""
    function = home_of(made).place.function
    if module is not None:
        return module
    if function is not None and not function.startswith("test"):
        return f"{function}()"
    return title(made)
