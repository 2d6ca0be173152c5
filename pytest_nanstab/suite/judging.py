"""Who owns which finding of a training."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_nanstab.findings import Finding
from pytest_nanstab.suite.spec import Check

_GRADIENT_KINDS = {"limit", "stuck-parameter", "exploding-gradient", "vanishing-gradient", "dead-unit"}
_HEADROOM_KINDS = {"headroom", "lost-precision"}


def owner_of(finding: Finding) -> Check:
    """The check that fails with a finding of the training."""
    if finding.kind in _HEADROOM_KINDS or finding.evidence.get("limit_name") == "min_headroom_bits":
        return "headroom"
    return "gradient_bounds" if finding.kind in _GRADIENT_KINDS else "finite_steps"


def owned(findings: Iterable[Finding], check: Check) -> list[Finding]:
    """The findings a check fails with, each fault once: a limit broken at every step is told by the first."""
    seen = set()
    result = []
    for finding in findings:
        fault = (finding.kind, finding.module, finding.op, finding.evidence.get("limit_name"))
        if owner_of(finding) == check and fault not in seen:
            seen.add(fault)
            result.append(finding)
    return result
