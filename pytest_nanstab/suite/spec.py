"""What a suite is, as data: checks, precisions, one case per item. Standard library only: the collector imports it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Precision = Literal["64-true", "32-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"]
Check = Literal[
    "init_scale",
    "finite_data",
    "finite_steps",
    "finite_eval",
    "gradient_bounds",
    "adversarial_batches",
    "headroom",
]
Role = Literal[Check, "baseline"]  # what an item does; the baseline is asked for by an argument of its own
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CHECKS: tuple[Check, ...] = get_args(Check)
ONCE: tuple[Check, ...] = ("init_scale", "finite_data")  # what they read does not depend on the precision
SPEC_ATTRIBUTE = "__nanstab_suite__"


@dataclass(frozen=True)
class Choice:
    """One value of `checks` or `precision` with the marks its `pytest.param` carried."""

    value: str
    marks: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Case:
    """What one item does; `precision` is None for the checks that run once."""

    check: Role
    precision: Precision | None = None

    @property
    def id(self) -> str:
        """The item's id, "finite_steps-32-true" or "init_scale"."""
        return self.check if self.precision is None else f"{self.check}-{self.precision}"


@dataclass(frozen=True, kw_only=True)
class SuiteSpec:
    """The validated arguments of one `stability_suite`."""

    steps: int
    precision: tuple[Choice, ...]
    checks: tuple[Choice, ...]
    init_scale: str | Mapping[str, str]
    seed: int
    seeds: int
    baseline: bool = False
    limits: Mapping[str, float | None] = field(default_factory=dict)

    def cases(self) -> list[tuple[Case, tuple[Any, ...]]]:
        """Every case with its marks: what runs once, then precision by precision, while its training is still held."""
        cases: list[tuple[Case, tuple[Any, ...]]] = [
            (Case(_check(choice)), choice.marks) for choice in self.checks if choice.value in ONCE
        ]
        each = [choice for choice in self.checks if choice.value not in ONCE]
        for precision in self.precision:
            trained = _precision(precision)
            cases += [(Case(_check(check), trained), check.marks + precision.marks) for check in each]
            if self.baseline:
                cases.append((Case("baseline", trained), precision.marks))
        return cases


def _check(choice: Choice) -> Check:
    return next(check for check in CHECKS if check == choice.value)


def _precision(choice: Choice) -> Precision:
    return next(precision for precision in PRECISIONS if precision == choice.value)


def suite_of(function: Callable[..., object]) -> SuiteSpec | None:
    """The spec that `stability_suite` left on a test function or bound method."""
    spec = getattr(function, SPEC_ATTRIBUTE, None)
    return spec if isinstance(spec, SuiteSpec) else None
