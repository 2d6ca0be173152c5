"""What a check reports: one immutable record per finding, and the closed list of kinds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pytest_nanstab.errors import NonFiniteError, StabilityError

Kind = Literal[
    "nonfinite-input",
    "nonfinite-output",
    "nonfinite-loss",
    "nonfinite-gradient",
    "nonfinite-parameter",
    "nonfinite-buffer",
    "nonfinite-optimizer-state",
    "exploding-gradient",
    "vanishing-gradient",
    "dead-unit",
    "stuck-parameter",
    "ineffective-clip",
    "scaled-clip",
    "stuck-loss-scale",
    "init-scale",
    "headroom",
    "lost-precision",
    "limit",
    "bad-data",
    "accepted-nonfinite",
    "leaked-statistics",
    "baseline",
    "rank-drift",
]
KINDS: tuple[str, ...] = get_args(Kind)
Phase = Literal["data", "init", "forward", "backward", "optimizer", "eval"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, as data.

    Attributes:
        kind: a stable string, such as "nonfinite-loss"; the reference lists them all.
        message: one line, short enough for an 80-column summary: what, at which step, where.
        step: the optimizer step it belongs to, counted from 1; None outside training.
        phase: the part of the step: "data", "init", "forward", "backward", "optimizer" or "eval".
        module: dotted path of the module, or of the parameter or buffer, as `named_modules` has it.
        op: the torch operation, where it is known.
        source: the user's own line, "models/attention.py:31".
        evidence: measured numbers and short texts, JSON-able except for non-finite floats; the failure block prints
            them in this order.
        cause: why, in the words of the field; None where the evidence does not support one.
        remedy: what to change.
    """

    kind: Kind
    message: str
    step: int | None = None
    phase: Phase | None = None
    module: str | None = None
    op: str | None = None
    source: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    cause: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        """The failure block, as a failing test shows it: `assert found is None, str(found)`."""
        from pytest_nanstab.reporting.block import render  # reporting comes after findings in the flow of data

        return render([self])

    def as_dict(self) -> dict[str, Any]:
        """All fields as strict JSON data: non-finite numbers become the strings "nan", "inf" and "-inf"."""
        return {name: jsonable(getattr(self, name)) for name in self.__dataclass_fields__}

    def is_like(self, other: Finding) -> bool:
        """Whether both tell of the same fault, whatever they have measured."""
        return all(getattr(self, name) == getattr(other, name) for name in ("kind", "step", "module", "source", "op"))

    @property
    def is_nonfinite(self) -> bool:
        """Whether the finding is about a NaN or an infinity."""
        if self.kind == "bad-data":
            return bool(self.evidence.get("nan") or self.evidence.get("inf"))
        return self.kind.startswith("nonfinite-") or self.kind == "accepted-nonfinite"


def from_dict(data: Mapping[str, Any]) -> Finding:
    """The inverse of `Finding.as_dict` (numbers that were not finite stay strings)."""
    fields: dict[str, Any] = {name: data.get(name) for name in Finding.__dataclass_fields__}
    return Finding(**fields)


def jsonable(value: Any) -> Any:
    """Plain data for a strict JSON file; anything that is not plain data becomes its `str`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [jsonable(item) for item in value]
    return str(value)


def error_from(findings: Iterable[Finding]) -> StabilityError:
    """The exception that carries `findings`, root cause first; its text is the failure block.

    Raises nothing itself. The class is `NonFiniteError` when the first finding is about NaN or Inf.
    """
    from pytest_nanstab.reporting.block import render  # reporting comes after findings in the flow of data

    found = tuple(findings)
    cls = NonFiniteError if found and found[0].is_nonfinite else StabilityError
    return cls(render(found), found)
