"""`assert_finite`: no NaN and no infinity anywhere in a value."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pytest_nanstab.checks import _leaves
from pytest_nanstab.checks._leaves import Leaf, numeric_leaves
from pytest_nanstab.checks._numbers import Damage, damage_of
from pytest_nanstab.findings import Finding, error_from

MAX_FINDINGS = 20


def assert_finite(obj: Any, *, allow_inf: bool = False, allow_nan: bool = False, name: str = "value") -> None:
    """Fail unless every number in `obj` is finite.

    Looks into tensors (sparse, nested, complex and every float format), numpy arrays, numbers, pandas and polars data,
    modules (parameters and buffers), optimizers and state dicts, and any nesting of mappings, sequences, sets, named
    tuples and dataclasses; iterators are consumed. Integers are finite; strings, None and meta tensors are passed over.

    Args:
        obj: what to look at.
        allow_inf: let infinities pass, for example the -inf of a causal mask.
        allow_nan: let NaN pass.
        name: what messages call `obj`.

    Raises:
        NonFiniteError: with a finding for every bad leaf, at most 20.
        TypeError: `obj` holds no number at all, so there is nothing to check.
    """
    __tracebackhide__ = True
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {name!r}")
    findings = nonfinite_leaves(obj, allow_inf=allow_inf, allow_nan=allow_nan, name=name)
    if findings:
        raise error_from(findings)


def nonfinite_leaves(obj: Any, *, allow_inf: bool, allow_nan: bool, name: str) -> list[Finding]:
    """A finding for each leaf of `obj` with a value that is not allowed; `TypeError` when there are no numbers."""
    bad: list[tuple[Leaf, Damage]] = []
    looked = more = 0
    for leaf in numeric_leaves(obj, name=name):
        looked += 1
        damage = damage_of(leaf, allow_inf=allow_inf, allow_nan=allow_nan)
        if damage is not None and len(bad) < MAX_FINDINGS:
            bad.append((leaf, damage))
        else:
            more += damage is not None
    if not looked:
        raise TypeError(f"{name} ({_described(obj)}) holds no numbers to check; allowed are {_leaves.ACCEPTED}")
    return _findings(bad, more) if bad else []


def _described(obj: object) -> str:
    kind = type(obj).__name__
    try:
        return f"empty {kind}" if len(obj) == 0 else kind  # type: ignore[arg-type]  # whatever has a length
    except TypeError:
        return kind


def _findings(bad: list[tuple[Leaf, Damage]], more: int) -> list[Finding]:
    from pytest_nanstab.attribution.asserted import with_origin
    from pytest_nanstab.attribution.source import user_line

    source = user_line()
    note = f"{len(bad) + more} tensors are not finite, the first {len(bad)} are listed" if more else None
    findings = [
        finding_of(leaf, damage, source=source, note=None if index else note)
        for index, (leaf, damage) in enumerate(bad)
    ]
    first = bad[0][0].values
    return [with_origin(findings[0], first), *findings[1:]] if isinstance(first, Tensor) else findings


def finding_of(leaf: Leaf, damage: Damage, *, source: str | None, note: str | None = None) -> Finding:
    """The finding for one bad leaf."""
    path = leaf.path + str(damage.first_index) if leaf.flat and damage.count == 1 else leaf.path
    return Finding(
        kind=leaf.kind,
        message=f"{damage.what} in {path} ({_counted(damage)})",
        module=leaf.module,
        source=source,
        evidence={"tensor": path, **facts(leaf, damage), **({"note": note} if note else {})},
    )


def facts(leaf: Leaf, damage: Damage) -> dict[str, Any]:
    """The measured numbers of a bad leaf, under the names the failure block knows."""
    return {
        "dtype": leaf.dtype,
        "shape": list(leaf.shape),
        "count": damage.count,
        "of": damage.of,
        "nan": damage.nan,
        "inf": damage.inf,
        "first_index": damage.first_index,
        "range": damage.range,
    }


def _counted(damage: Damage) -> str:
    split = f"{damage.nan} NaN, {damage.inf} Inf" if damage.nan and damage.inf else str(damage.count)
    return f"{split} of {damage.of} value{'' if damage.of == 1 else 's'}"
