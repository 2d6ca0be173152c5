"""How the tests and the benchmark search a program: as an item of a suite does, without pytest around it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pytest_nanstab import Finding, TrainingSetup
from pytest_nanstab.config import GRADES
from pytest_nanstab.search.hunts import attack
from pytest_nanstab.suite.driver import Stepper, describe, drive
from pytest_nanstab.suite.precision import arithmetic
from pytest_nanstab.suite.shared import SAMPLES, Training
from pytest_nanstab.suite.state import Snapshot, modes, seeded
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

STEPS = 20
_EVALUATIONS = re.compile(r"(\d+) evaluations")


@dataclass(frozen=True)
class Result:
    """What came of it."""

    finding: Finding | None
    notes: list[str]
    evaluations: int

    @property
    def grade(self) -> str:
        """By which state it was reached; "" without a finding."""
        grade = "" if self.finding is None else str(self.finding.evidence["grade"])
        assert self.finding is None or grade in GRADES
        return grade


def hunted(make: Callable[[bool], TrainingSetup], fixed: bool, seed: int = 0, precision: str = "32-true") -> Result:
    """Train for 20 steps, then search."""
    with seeded(seed):
        setup = make(fixed)
        with modes(setup.model, training=True), arithmetic(setup, precision) as form:
            fresh = Snapshot(setup)
            context = describe(STEPS, seed, form)
            with Region(Options(raises=False, check_parameters=True, explain=False), context) as region:
                *samples, last = drive(Stepper(setup, form), region, steps=STEPS, keep=SAMPLES)
        for finding in region.findings:
            if finding.is_nonfinite:
                return Result(finding, [], STEPS)
        training = Training(setup, form, region.run, [], samples, last, fresh)
        found, notes = attack(training, seed, context)
    counted = _EVALUATIONS.search(notes[0]) if notes else None
    return Result(found, notes, int(counted[1]) if counted else 0)
