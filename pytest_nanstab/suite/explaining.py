"""Which operation is behind what a suite's item found: the same training or evaluation once more, traced."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from pytest_nanstab.attribution.plan import GIVEN_UP, broken_off, patience, traced
from pytest_nanstab.attribution.tracing import AbandonedError, Tracing
from pytest_nanstab.findings import Finding
from pytest_nanstab.ranks.place import is_one_of_several
from pytest_nanstab.suite import data_origin
from pytest_nanstab.suite.driver import describe
from pytest_nanstab.suite.evaluate import evaluate
from pytest_nanstab.suite.expand import ItemRequest
from pytest_nanstab.suite.shared import trained_apart, training_of

_MARGIN = 2
_SHORT = 0.35


def explained(request: ItemRequest, seed: int, failing: Sequence[Finding]) -> list[Finding]:
    """The findings of an item, the first of them with its origin where a repetition shows it."""
    if not failing or request.explain == "off" or not failing[0].is_nonfinite or failing[0].op is not None:
        return list(failing)
    first, *others = failing
    try:
        return [_explained(request, seed, first), *others]
    except (Exception, pytest.skip.Exception) as error:  # noqa: BLE001 - the factory and its data, run once more
        return [replace(first, evidence={"note": broken_off(error), **first.evidence}), *others]


def _explained(request: ItemRequest, seed: int, finding: Finding) -> Finding:
    if request.case.check == "finite_data":
        return finding if is_one_of_several() else data_origin.explained(request, seed, finding)
    repeat = _repetition(request, seed)
    return finding if repeat is None else _told(finding, repeat, *_steps(request, seed, finding))


Repeat = Callable[[], Sequence[Finding]]


def _repetition(request: ItemRequest, seed: int) -> Repeat | None:
    check = request.case.check
    if check in ("finite_steps", "gradient_bounds", "headroom", "baseline"):
        return lambda: trained_apart(request, seed).findings
    if check == "finite_eval":
        training = training_of(request, seed)
        context = describe(request.spec.steps, seed, training.form)
        return lambda: evaluate(training.setup, training.form, seed, context)
    return None


def _steps(request: ItemRequest, seed: int, finding: Finding) -> tuple[list[int], float]:
    """From which steps to trace, and how many seconds that may take."""
    if is_one_of_several():  # all ranks alike
        return [1], math.inf
    seconds = training_of(request, seed).seconds
    late = (finding.step or 1) - _MARGIN
    return ([1] if seconds < _SHORT or late <= 1 or finding.phase == "eval" else [late, 1]), patience(seconds)


def _told(finding: Finding, repeat: Repeat, firsts: Sequence[int], seconds: float) -> Finding:
    told: Finding | None = None
    note = "a repetition of the training stayed finite: it is not deterministic, so the operation is not known"
    for first in firsts:
        again = repeated(repeat, first, seconds=seconds)
        note = GIVEN_UP if again is None else note
        told = next((f for f in again or () if f.is_nonfinite), told)
        if told is not None and told.op is not None:
            break
    if told is None:
        return replace(finding, evidence={**finding.evidence, "note": note})
    return replace(told, evidence={**told.evidence, **_only_first(finding, told)})


def _only_first(finding: Finding, told: Finding) -> dict[str, object]:
    """What only the first run knows: the batch a suite names, its grade and description."""
    keys = ("batch", "grade", "batch_description", "seed", "steps", "precision", "device")
    return {key: finding.evidence[key] for key in keys if key in finding.evidence and key not in told.evidence}


def repeated(repeat: Repeat, first: int = 1, *, seconds: float = 60.0) -> Sequence[Finding] | None:
    """What a repetition finds with its operations traced from a step on; None when it takes too long."""
    __tracebackhide__ = True
    try:
        with traced(Tracing(first, deadline=time.monotonic() + seconds)):
            return repeat()
    except AbandonedError:
        return None
