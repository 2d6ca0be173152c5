"""The two hunts for a legal batch that breaks the model: a suite's short one, and `nanstab.search`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pytest_nanstab.findings import Finding
from pytest_nanstab.suite.adversarial import NOTHING, Budget, Hunter, State, all_batches, domain_of, scaled
from pytest_nanstab.suite.driver import Stepper, describe, drive
from pytest_nanstab.suite.precision import Arithmetic, InapplicableError, as_given
from pytest_nanstab.suite.setup import Batch, TrainingSetup, owned_parameters
from pytest_nanstab.suite.shared import Training
from pytest_nanstab.suite.state import Snapshot, modes, seeded
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

SUITE_EVALUATIONS = 60
SUITE_SECONDS = 10.0
TYPICAL_STEPS = 40
FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0)
# Share of a search's time for the states that training itself passes through; the rest goes to scaled weights.
REAL_STATES = 0.6


def attack(
    training: Training, seed: int, context: Mapping[str, object], *, explain: bool = True
) -> tuple[Finding | None, list[str]]:
    """Up to 60 tries in 10 s on the fresh and on the trained model; the first finding, and notes for the reader.

    Raises:
        InapplicableError: there is nothing to vary, or the model refused every batch the samples suggest.
    """
    __tracebackhide__ = True
    setup, form = training.setup, training.form
    assert training.fresh is not None
    domain = domain_of(setup, training.samples, form)
    hunter = Hunter(setup, form, domain, seed=seed, context=context, explain=explain)
    budget = Budget(SUITE_EVALUATIONS, SUITE_SECONDS)
    trained = Snapshot(setup)
    states = [State("fresh model", training.fresh.restore), State("trained model", trained.restore)]
    try:
        found = hunter.hunt(states, all_batches(domain, seed=seed), budget)
    finally:
        trained.restore()
    if found is None and not hunter.tried:
        refusal = next(iter(hunter.refused), "none was tried")
        raise InapplicableError(
            f"{NOTHING}: the model refused every batch inferred from its first ones ({refusal}); "
            "declare TrainingSetup(domain=...)"
        )
    return found, hunter.notes(budget)


def search(
    setup: TrainingSetup, *, seconds: float, evaluations: int | None, seed: int = 0, device: str = "cpu"
) -> Finding | None:
    """Hunt on typical data, the fresh model, the model after 40 typical steps, and with weights scaled up to 32-fold.

    Model, optimizer, schedule, modes and random states are afterwards what they were, bit for bit.
    """
    __tracebackhide__ = True
    with seeded(seed), as_given(setup, device=device) as form:
        fresh = Snapshot(setup)
        try:
            return _search(setup, form, fresh, seed, Budget(evaluations, seconds))
        finally:
            fresh.restore()


def _search(setup: TrainingSetup, form: Arithmetic, fresh: Snapshot, seed: int, budget: Budget) -> Finding | None:
    __tracebackhide__ = True
    context = describe(TYPICAL_STEPS, seed, form)
    samples, failed = _typical(setup, form, context)
    if failed is not None:
        return failed
    trained = Snapshot(setup)
    hunter = Hunter(setup, form, domain_of(setup, samples, form), seed=seed, context=context)
    real = [State("fresh model", fresh.restore), State("trained model", trained.restore)]
    batches = all_batches(hunter.domain, seed=seed)
    first = Budget(_part(budget.evaluations), budget.seconds * REAL_STATES, started=budget.started)
    found = hunter.hunt(real, batches, first)
    if found is not None:
        return found
    budget.used = first.used
    weights = owned_parameters(setup)
    larger = [State("scaled weights", scaled(weights, fresh, factor)) for factor in FACTORS]
    return hunter.hunt(larger, all_batches(hunter.domain, seed=seed), budget)


def _part(evaluations: int | None) -> int | None:
    return None if evaluations is None else max(1, round(evaluations * REAL_STATES))


def _typical(
    setup: TrainingSetup, form: Arithmetic, context: Mapping[str, object]
) -> tuple[list[Batch], Finding | None]:
    """Train 40 steps on the user's own batches; the first batches, and what broke."""
    __tracebackhide__ = True
    with modes(setup.model, training=True), Region(Options(raises=False, check_parameters=True), context) as region:
        *samples, _ = drive(Stepper(setup, form), region, steps=TYPICAL_STEPS, keep=4)
    found = next((finding for finding in region.findings if finding.is_nonfinite), None)
    if found is None:
        return samples, None
    return samples, replace(found, evidence={"grade": "typical data", **found.evidence})
