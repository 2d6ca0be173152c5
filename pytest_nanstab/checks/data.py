"""`assert_finite_batches`: every batch of a loader, every field, to the end."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_nanstab.checks import _numbers
from pytest_nanstab.checks._leaves import Array, Leaf, numeric_leaves, readable
from pytest_nanstab.checks._numbers import Damage, damage_of
from pytest_nanstab.checks.finite import facts
from pytest_nanstab.findings import Finding, error_from

_LISTED = 10
_ROOT = "batch"


def assert_finite_batches(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    domain: Any = None,
    max_batches: int | None = None,
    max_faults: int = 20,
) -> None:
    """Fail when any batch holds NaN, Inf or a value outside its declared domain; all faults are found in one pass.

    Args:
        batches: a loader, another iterable, or a callable that returns one. It is walked to its end.
        domain: `TensorSpec`s shaped like a batch. They give legal ranges and may allow NaN or infinities; the fields
            they leave out must be finite.
        max_batches: how many batches to walk; None walks all of them.
        max_faults: how many faults to describe; the others are only counted.

    Without a domain a field with "mask" in its name may consist of 0 and -inf, as additive attention masks do.

    Raises:
        NonFiniteError: a fault is NaN or Inf. Findings of kind "bad-data" say batch, field, rows and columns.
        StabilityError: values are only outside the domain.
        ValueError: there was no batch, or no number in any.
        TypeError: `batches` cannot be walked.
    """
    __tracebackhide__ = True
    survey = survey_batches(batches, domain=domain, max_batches=max_batches, max_faults=max_faults)
    if survey.findings:
        raise error_from(survey.findings)


def walk(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    domain: Any = None,
    max_batches: int | None = None,
    max_faults: int = 20,
    seconds: float | None = 60.0,
) -> list[Finding]:
    """The faults `assert_finite_batches` would raise, from as many batches as fit into `seconds`."""
    return survey_batches(
        batches, domain=domain, max_batches=max_batches, max_faults=max_faults, seconds=seconds
    ).findings


@dataclass
class Survey:
    """What a walk over batches saw.

    Attributes:
        findings: the described faults, in order of their batches.
        batches: how many batches were looked at.
        complete: whether the end was reached before a bound on time or number.
        faults: how many faults there are, described or not.
        notes: what is unusual and no fault: constant columns, object arrays.
    """

    findings: list[Finding] = field(default_factory=list)
    batches: int = 0
    complete: bool = True
    faults: int = 0
    notes: list[str] = field(default_factory=list)


def survey_batches(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    domain: Any = None,
    max_batches: int | None = None,
    max_faults: int = 20,
    seconds: float | None = None,
) -> Survey:
    """Walk `batches` and tell all that was seen; `ValueError` when nothing could be checked."""
    _check_count("max_faults", max_faults)
    if max_batches is not None:
        _check_count("max_batches", max_batches)
    walker = _Walker(_specs(domain), max_faults)
    deadline = None if seconds is None else time.monotonic() + seconds
    for number, batch in enumerate(_iterator(batches), start=1):
        walker.look(number, batch)
        if number == max_batches or (deadline is not None and time.monotonic() > deadline):
            walker.survey.complete = False
            break
    return walker.finished()


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, got {value!r}")


def _iterator(batches: Any) -> Iterator[Any]:
    source = batches() if callable(batches) and not isinstance(batches, Iterable) else batches
    if isinstance(source, (str, bytes, Mapping, Tensor, np.ndarray)):
        kind = type(source).__name__
        raise TypeError(f"batches must be an iterable of batches, got one {kind}; put a single batch into a list")
    try:
        return iter(source)
    except TypeError:
        kind = type(source).__name__
        raise TypeError(f"batches must be an iterable or a callable that returns one, got {kind}") from None


# --- what the domain says


def _specs(domain: Any) -> dict[str, Any]:
    """The specs of a domain by dotted field path; anything with bounds counts as a spec."""
    found: dict[str, Any] = {}
    stack = [("", domain)]
    while stack:
        path, node = stack.pop()
        if node is None:
            continue
        if hasattr(node, "min_value") and hasattr(node, "allow_nan"):
            found[path] = node
            continue
        items = _items(node)
        if items is None:
            raise TypeError(f"domain must hold TensorSpecs shaped like a batch, got {node!r}")
        stack.extend((f"{path}.{key}" if path else str(key), child) for key, child in items)
    return found


def _items(node: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(node, Mapping):
        return list(node.items())
    names = getattr(node, "_fields", None) or getattr(node, "__dataclass_fields__", None)
    if names:
        return [(name, getattr(node, name)) for name in names]
    return list(enumerate(node)) if isinstance(node, (list, tuple)) else None


# --- the walk


class _Walker:
    """Looks at one batch after the other and gathers faults and notes."""

    def __init__(self, specs: Mapping[str, Any], max_faults: int) -> None:
        self.specs = specs
        self.max_faults = max_faults
        self.survey = Survey()
        self._columns: dict[str, _Columns] = {}
        self._bad_batches: Counter[str] = Counter()
        self._odd: dict[str, None] = {}
        self._numbers = 0
        self._source: str | None = None

    def look(self, number: int, batch: Any) -> None:
        self.survey.batches = number
        fields = set()
        for leaf in numeric_leaves(batch, name=_ROOT, missing="numbers"):
            self._numbers += 1
            fields.add(leaf.field)
            self._look_at(number, leaf)
        lost = sorted(set(self.specs) - fields)
        if lost:
            known = ", ".join(sorted(map(_shown, fields))) or "none"
            raise ValueError(f"domain names {_shown(lost[0])!r}, which batch {number} lacks; its fields are {known}")

    def _look_at(self, number: int, leaf: Leaf) -> None:
        spec = self.specs.get(leaf.field)
        damage = self._nonfinite(leaf, spec)
        if damage is not None:
            self._fault(number, leaf, damage.what, _evidence(leaf, damage))
        outside = None if spec is None or damage is not None else _outside(leaf, spec)
        if outside is not None:
            self._fault(number, leaf, "out of range", outside)
        if leaf.dtype == "object":
            self._odd[f"{_shown(leaf.field)} has dtype object"] = None
        if damage is None and _numbers.is_float(leaf) and len(leaf.shape) == 2 and leaf.locate is None:
            self._columns.setdefault(leaf.field, _Columns()).add(leaf.values)

    def _nonfinite(self, leaf: Leaf, spec: Any) -> Damage | None:
        if spec is not None:
            return damage_of(leaf, allow_inf=bool(spec.allow_infinity), allow_nan=bool(spec.allow_nan))
        damage = damage_of(leaf)
        if damage is None or damage.nan or not _is_additive_mask(leaf, damage):
            return damage
        self._odd[f"{_shown(leaf.field)} holds only 0 and -inf: taken for an additive mask"] = None
        return None

    def _fault(self, number: int, leaf: Leaf, what: str, evidence: dict[str, Any]) -> None:
        self.survey.faults += 1
        self._bad_batches[_shown(leaf.field)] += 1
        if len(self.survey.findings) >= self.max_faults:
            return
        if self._source is None:
            from pytest_nanstab.attribution.source import user_line

            self._source = user_line()
        self.survey.findings.append(_finding(number, leaf, what, evidence, self._source))

    def finished(self) -> Survey:
        """The survey with its notes; `ValueError` when there was nothing to check."""
        survey = self.survey
        if not survey.batches:
            raise ValueError("batches is empty: nothing was checked (an iterator that was walked before stays empty)")
        if not self._numbers:
            raise ValueError(f"no number in any of {survey.batches} batches: nothing was checked")
        survey.notes = [*self._odd, *self._constant_columns()]
        survey.findings.sort(key=lambda finding: not finding.is_nonfinite)
        if survey.findings:
            first = survey.findings[0]
            evidence = {**first.evidence, "note": [*self._totals(), *survey.notes]}
            survey.findings[0] = Finding(**{**vars(first), "evidence": evidence})
        return survey

    def _totals(self) -> Iterator[str]:
        survey = self.survey
        for name, count in self._bad_batches.most_common(_LISTED):
            yield f"{name}: bad in {count} of {survey.batches} batches"
        if survey.faults > len(survey.findings):
            yield f"{survey.faults} faults in all, the first {len(survey.findings)} are described"

    def _constant_columns(self) -> Iterator[str]:
        for name, columns in self._columns.items():
            constant = columns.constant()
            if constant:
                more = f" and {len(constant) - _LISTED} more" if len(constant) > _LISTED else ""
                yield f"{_shown(name)}: constant in columns {', '.join(map(str, constant[:_LISTED]))}{more}"


def _shown(name: str) -> str:
    return name or _ROOT


def _is_additive_mask(leaf: Leaf, damage: Damage) -> bool:
    named = "mask" in leaf.field.rpartition(".")[2].lower()
    extent = _numbers.extent(leaf.values) if named else None
    return extent is not None and extent.high == 0 and damage.range == [0.0, 0.0]


def _finding(number: int, leaf: Leaf, what: str, evidence: dict[str, Any], source: str | None) -> Finding:
    first = evidence["first_index"]
    where = f" at {first}" if first else ""
    count = "" if evidence["count"] == 1 else f" ({evidence['count']} of {evidence['of']} values)"
    return Finding(
        kind="bad-data",
        message=f"{what} in batch {number}, field {_shown(leaf.field)}{count or where}",
        phase="data",
        source=source,
        evidence={"batch": number, "field": _shown(leaf.field), **evidence},
    )


def _evidence(leaf: Leaf, damage: Damage) -> dict[str, Any]:
    return {**facts(leaf, damage), "rows": damage.rows, "columns": damage.columns}


# --- ranges and constant columns


def _outside(leaf: Leaf, spec: Any) -> dict[str, Any] | None:
    """Evidence for values outside the spec's bounds; padding and ignored targets are inside."""
    if _unreadable(leaf):
        return None
    low, high = _bound(spec.min_value, leaf.values, -math.inf), _bound(spec.max_value, leaf.values, math.inf)
    seen = _numbers.extent(leaf.values)
    if seen is None or (seen.low >= low and seen.high <= high):
        return None
    numbers = _as_array(leaf.values)
    bad = np.asarray((numbers < low) | (numbers > high))
    for exempt in (getattr(spec, "pad_value", None), getattr(spec, "ignore_index", None)):
        bad &= True if exempt is None else numbers != exempt
    if getattr(spec, "allow_infinity", False):
        bad &= ~np.isinf(numbers)
    return _range_evidence(leaf, spec, numbers, bad) if bad.any() else None


def _bound(bound: float | None, values: Tensor | Array, unbounded: float) -> float:
    """A bound as the field's dtype has it: 0.1 must not lie below float32's 0.1."""
    if bound is None:
        return unbounded
    if isinstance(values, Tensor):
        return torch.tensor(bound, dtype=values.dtype).item() if values.is_floating_point() else bound
    return float(values.dtype.type(bound)) if values.dtype.kind == "f" else bound


def _range_evidence(leaf: Leaf, spec: Any, numbers: Array, bad: Array) -> dict[str, Any]:
    bounds = [spec.min_value, spec.max_value]
    worst = numbers[bad][np.argmax(np.abs(numbers[bad].astype(np.float64)))]
    return {
        "dtype": leaf.dtype,
        "shape": list(leaf.shape),
        "count": int(bad.sum()),
        "of": int(bad.size),
        "first_index": _numbers.index_of_first(leaf, bad),
        "value": worst.item(),
        "domain": "{} to {}".format(*("unbounded" if bound is None else bound for bound in bounds)),
        **_numbers.places(leaf, bad, _LISTED),
    }


def _unreadable(leaf: Leaf) -> bool:
    values = leaf.values
    if isinstance(values, Tensor):
        return values.is_complex() or not readable(values)
    return values.dtype.kind not in "fiub"


def _as_array(values: Tensor | Array) -> Array:
    if not isinstance(values, Tensor):
        return values
    plain = values.detach().cpu()
    return np.asarray((plain.float() if plain.is_floating_point() and plain.element_size() < 4 else plain).numpy())


class _Columns:
    """Running smallest and largest value of each column of a two-dimensional field."""

    def __init__(self) -> None:
        self.low: Array | None = None
        self.high: Array | None = None

    def add(self, values: Tensor | Array) -> None:
        if 0 in values.shape or (isinstance(values, Tensor) and values.is_complex()):
            return
        low, high = _column_extents(values)
        if self.low is None or self.high is None:
            self.low, self.high = low, high
        elif self.low.shape == low.shape:
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        else:  # a padded length, not a column
            self.low = self.high = np.empty(0)

    def constant(self) -> list[int]:
        """Columns with one value in all rows, unless all columns are: then there was one distinct row."""
        if self.low is None or self.high is None:
            return []
        same = self.low == self.high
        return [] if same.all() else [int(index) for index in np.flatnonzero(same)]


def _column_extents(values: Tensor | Array) -> tuple[Array, Array]:
    if isinstance(values, Tensor):
        low, high = torch.aminmax(_numbers.real(values), dim=0)
        return _as_array(low), _as_array(high)
    return values.min(axis=0), values.max(axis=0)
