"""How the tests and the calibration benchmark judge a program: as a suite does, without pytest around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytest_nanstab import Finding, TrainingSetup
from pytest_nanstab.attribution.constructions import recording_writes
from pytest_nanstab.checks._stuck import Trained
from pytest_nanstab.checks.gradients import gradient_findings, notes
from pytest_nanstab.checks.init_scale import init_scale_report
from pytest_nanstab.suite.batching import cycle
from pytest_nanstab.suite.driver import Stepper, drive
from pytest_nanstab.suite.observing import Start, observed_passes
from pytest_nanstab.suite.precision import arithmetic, check_precision
from pytest_nanstab.suite.setup import optimizers_of
from pytest_nanstab.suite.shared import SAMPLES, names_of
from pytest_nanstab.suite.state import modes, seeded
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region
from zoo import Program

_WATCHED = Options(
    raises=False, update_ratio=True, check_parameters=True, track_parameters=True, details=True, explain=False
)


@contextmanager
def made(program: Program, optimizer: str = "", seed: int = 0) -> Iterator[TrainingSetup]:
    """The program's objects, with its random numbers."""
    with seeded(seed):
        with recording_writes():
            setup = program.setup(optimizer)
        yield setup


def init_verdicts(program: Program, seed: int = 0) -> list[Finding]:
    """What the check `init_scale` finds."""
    with made(program, seed=seed) as setup, modes(setup.model, training=True):
        return init_scale_report(setup.model, batch=next(cycle(setup.batches)), loss=setup.loss).findings


def gradient_verdicts(
    program: Program, optimizer: str, precision: str, *, steps: int, seed: int = 0
) -> tuple[list[Finding], list[str], str | None]:
    """What the check `gradient_bounds` and the watch find, the notes, and why no pass could be observed."""
    with made(program, optimizer, seed) as setup:
        region, trained = trained_by(setup, precision, steps)
    failed = next((seen.failed for seen in trained.passes if seen.failed), None)
    return [*region.findings, *gradient_findings(trained)], [*region.run.notes, *notes(trained)], failed


def trained_by(setup: TrainingSetup, precision: str, steps: int) -> tuple[Region, Trained]:
    """A watched training, as the items of a suite share it."""
    with modes(setup.model, training=True), arithmetic(setup, check_precision(precision)) as form:
        start, stepper = Start(setup.model), Stepper(setup, form)
        with Region(_WATCHED) as region:
            *samples, _ = drive(stepper, region, steps=steps, keep=SAMPLES)
        bad = any(finding.is_nonfinite for finding in region.findings)
        passes = [] if bad else observed_passes(setup, form, samples)
    trained = Trained(
        setup.model,
        optimizers_of(setup),
        region.run,
        passes=passes,
        stuck=names_of(setup, [] if region.stuck is None else region.stuck.found()),
        restored=names_of(setup, [] if region.stuck is None else region.stuck.put_back()),
        unmoved=start.unmoved(),
    )
    return region, trained
