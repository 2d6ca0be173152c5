"""From what was measured to cause and remedy: a table of rules, the first that fits speaks.

A rule fits only what the evidence shows: the operation, the direction, the operands where the first bad value stands,
and what was computed before and after. Where none fits, the measured facts stand alone. Each rule names its source:
a PyTorch issue, the documentation, or the edge itself (IEEE 754, the derivative).
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_nanstab.attribution.arithmetic_rules import ARITHMETIC
from pytest_nanstab.attribution.backward_rules import BACKWARD
from pytest_nanstab.attribution.case import Case
from pytest_nanstab.attribution.forward_rules import FORWARD
from pytest_nanstab.attribution.rule import ANY

RULES = (*FORWARD, *ARITHMETIC, *BACKWARD)


@dataclass(frozen=True)
class Advice:
    """Why it happened and what to change."""

    cause: str
    remedy: str
    source: str


def advice_for(case: Case) -> Advice | None:
    """The first rule that fits, or None."""
    for rule in RULES:
        known_operation = not rule.ops or case.op in rule.ops
        if known_operation and rule.direction in (ANY, case.direction) and rule.fits(case):
            return Advice(rule.cause.format(case=case), rule.remedy.format(case=case), rule.source)
    return None
