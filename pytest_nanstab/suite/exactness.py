"""Integers that the run's format cannot hold, in one pass of the loss over a batch."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_nanstab.attribution.keeping import kept
from pytest_nanstab.attribution.lost import Lost, LostIntegers, lasting_tensors
from pytest_nanstab.attribution.source import shown
from pytest_nanstab.findings import Finding
from pytest_nanstab.suite.batching import copied
from pytest_nanstab.suite.precision import Arithmetic
from pytest_nanstab.suite.setup import Batch, TrainingSetup
from pytest_nanstab.watching import verdicts


def integers_lost(setup: TrainingSetup, form: Arithmetic, batch: Batch, known: Sequence[Finding]) -> list[Finding]:
    """A finding for each line at which an integer is lost and that no finding of the training names.

    The model is left as it was. A loss that cannot be repeated (it needs what only a `training_step` sets up) shows
    nothing.
    """
    given = form.batch(copied(batch))
    mode = LostIntegers(lasting_tensors([setup.model]))
    try:
        with kept(setup.model.modules(), (), [given]), form.autocast(), mode:
            setup.loss(setup.model, given)
            found = mode.conclude(lasting_tensors([setup.model]))
    except Exception:  # noqa: BLE001 - the training itself went well: what cannot be run again is not judged
        return []
    told = {finding.source for finding in known if finding.kind == "lost-precision"}
    return [_finding(lost) for lost in found if shown(lost.spot) not in told]


def _finding(lost: Lost) -> Finding:
    return verdicts.lost_precision(
        _message(lost),
        lost.dtype,
        {"value": lost.value} if lost.kind == "range" else {"value": lost.value, "increment": lost.addend},
        step=None,
        op=lost.op,
        source=shown(lost.spot),
    )


def _message(lost: Lost) -> str:
    dtype = str(lost.dtype).removeprefix("torch.")
    if lost.kind == "range":
        return f"{lost.op} in {dtype} gives {lost.value:g} where other integers are meant"
    return f"a {lost.kind} has stopped at {lost.value:g}: {dtype} cannot add {lost.addend:g} to it"
