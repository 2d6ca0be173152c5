"""Who owns which finding of a training, and the two facts that only a whole training shows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise

from pytest_nanstab.findings import Finding
from pytest_nanstab.suite.spec import Check
from pytest_nanstab.watching.run import Run

_GRADIENT_KINDS = {"limit", "stuck-parameter", "exploding-gradient", "vanishing-gradient", "dead-unit"}
_HEADROOM_KINDS = {"headroom", "lost-precision"}
# The growth heuristic needs this many measured steps, so that a quarter of them is three.
GROWTH_STEPS = 12
# ... and this factor between first and last quarter: healthy trainings shrink their gradients, or let them grow by
# warm-up and sharpening, which stays within two orders of magnitude.
GROWTH_FACTOR = 1e3


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


def growth(run: Run, context: dict[str, object]) -> Finding | None:
    """An exploding gradient: over the last quarter of the steps the median raw norm is more than 1000 times that of the
    first quarter, most steps rose, and the loss has not fallen. Judged from 12 measured steps on.

    The numbers are ours, generous on purpose: no paper draws a line.
    """
    norms = [norm for norm in run.grad_norm if norm is not None and math.isfinite(norm)]
    if len(norms) < GROWTH_STEPS:
        return None
    first, last = _quarters(norms)
    rises = sum(after > before for before, after in pairwise(norms))
    losses = [loss for loss in run.loss if loss is not None]
    loss_fell = len(losses) >= GROWTH_STEPS and _quarters(losses)[1] < _quarters(losses)[0]
    if loss_fell or not (first > 0 and last > GROWTH_FACTOR * first and rises > (len(norms) - 1) / 2):
        return None
    return Finding(
        kind="exploding-gradient",
        message=f"gradient norm grew {last / first:.2g}-fold over {len(norms)} steps",
        phase="backward",
        evidence={
            **context,
            "first quarter": f"median norm {first:.3g}",
            "last quarter": f"median norm {last:.3g}",
            "rising steps": f"{rises} of {len(norms) - 1}",
        },
        cause="every update makes the next gradient larger: the steps overshoot",
        remedy="lower the learning rate, clip the gradient norm, or check the scale of weights and inputs",
    )


def _quarters(values: Sequence[float]) -> tuple[float, float]:
    """The medians of the first and of the last quarter."""
    quarter = len(values) // 4
    return statistics.median(values[:quarter]), statistics.median(values[-quarter:])


def stuck(names: Sequence[str], context: dict[str, object]) -> list[Finding]:
    """One finding for each parameter that no step changed."""
    return [
        Finding(
            kind="stuck-parameter",
            message=f"no step changed {name}, although it has a gradient",
            phase="optimizer",
            module=name.rpartition(".")[0] or None,
            evidence={**context, "parameter": name},
            cause="the update is below half a unit in the last place of the weights, or the optimizer drops it",
            remedy="keep float32 master weights, raise the learning rate, or look at what the optimizer does with it",
        )
        for name in names
    ]
