"""The search for a legal batch that breaks a training, phase by phase: a suite's short one, and `nanstab.search`.

Cheapest and likeliest first, and within that the states that training reaches before those it does not. That 40 typical
steps and weights scaled 1 to 32 times reach most hidden bugs was measured on a re-expression of the programs of GRIST
(Yan et al., ESEC/FSE 2021); climbing along the gradient of an operand's distance to its edge is their method.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from pytest_nanstab import progress
from pytest_nanstab.attribution.plan import traced
from pytest_nanstab.attribution.tracing import Tracing
from pytest_nanstab.batches.build import describe as words_of
from pytest_nanstab.batches.recipe import Described
from pytest_nanstab.config import GRADES
from pytest_nanstab.findings import Finding
from pytest_nanstab.search.budget import Budget
from pytest_nanstab.search.domain import NOTHING, domain_of, drawn_batches
from pytest_nanstab.search.guided import ROUNDS, Climb, sites_to_climb
from pytest_nanstab.search.hunter import Hunter
from pytest_nanstab.search.sites import Site, Watcher
from pytest_nanstab.search.states import State, scaled, zeroed
from pytest_nanstab.suite.batching import copied
from pytest_nanstab.suite.driver import Stepper, describe, drive
from pytest_nanstab.suite.precision import Arithmetic, InapplicableError, as_given
from pytest_nanstab.suite.setup import Batch, TrainingSetup
from pytest_nanstab.suite.shared import Training
from pytest_nanstab.suite.state import Snapshot, modes, seeded
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

SUITE_EVALUATIONS = 500
SUITE_SECONDS = 15.0
TYPICAL_STEPS = 40
FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0)
_TYPICAL = 2  # batches of the user's own that are tried on scaled and zeroed weights
_BOUNDARY = 8  # boundary batches that are tried on scaled weights
_SITES = 6  # operations that are climbed towards
_NEAR = 24.0  # bits from its edge at which an operation is worth a second climb: a spacing or two of float32
_ZEROED = 64  # weight tensors that are set to zero, each once
_GROWING = 3  # batches that show nothing but growth in one state: the others there are not tried
_DRAWN = 16  # batches drawn by Hypothesis in one round


def attack(
    training: Training, seed: int, context: Mapping[str, object], *, explain: bool = True, weakest: str = GRADES[-1]
) -> tuple[Finding | None, list[str]]:
    """Up to 500 evaluations in 15 s from the fresh and from the trained model; the first finding, and notes.

    Raises:
        InapplicableError: there is nothing to vary, or the model refused every batch the samples suggest.
    """
    __tracebackhide__ = True
    setup, form = training.setup, training.form
    assert training.fresh is not None
    domain = domain_of(setup, training.samples, form)
    budget = Budget(SUITE_EVALUATIONS, SUITE_SECONDS)
    hunter = Hunter(setup, form, domain, budget, seed=seed, context=context, explain=explain)
    trained = Snapshot(setup)
    try:
        with progress.stage("search", budget.words) as budget.tell:
            found = _continued(training, budget, seed, context, explain=explain)
            if found is None:
                hunt = Hunt(hunter, training.fresh, Snapshot(setup), training.samples, weakest)
                found = hunt.once(seed)
    finally:
        trained.restore()
    if found is None and not hunter.accepted:
        refusal = next(iter(hunter.refused), "none was tried")
        raise InapplicableError(
            f"{NOTHING}: the model refused every batch inferred from its first ones ({refusal}); "
            "declare TrainingSetup(domain=...)"
        )
    return found, hunter.notes()


def search(
    setup: TrainingSetup, *, seconds: float, evaluations: int | None, seed: int = 0, device: str = "cpu"
) -> tuple[Finding | None, list[str]]:
    """Search from the fresh model and from the model after 40 typical steps, round after round until the budget ends.

    Model, optimizer, schedule, modes and random states are afterwards what they were, bit for bit.
    """
    __tracebackhide__ = True
    with seeded(seed), as_given(setup, device=device) as form:
        fresh, budget = Snapshot(setup), Budget(evaluations, seconds)
        try:
            with progress.stage("search", budget.words) as budget.tell:
                return _search(setup, form, fresh, seed, budget)
        finally:
            fresh.restore()


def _search(
    setup: TrainingSetup, form: Arithmetic, fresh: Snapshot, seed: int, budget: Budget
) -> tuple[Finding | None, list[str]]:
    __tracebackhide__ = True
    context = describe(TYPICAL_STEPS, seed, form)
    samples, failed = _typical(setup, form, context)
    if failed is not None:
        return failed, []
    hunter = Hunter(setup, form, domain_of(setup, samples, form), budget, seed=seed, context=context)
    hunt, found = Hunt(hunter, fresh, Snapshot(setup), samples), None
    while found is None and not budget.is_spent:
        found = hunt.once(seed)
        seed += 1_000_003  # far from any seed a user would take next
    return found, hunter.notes()


class Hunt:
    """One search from two snapshots of a training: before its first step, and after its typical ones.

    Args:
        hunter: what tries.
        fresh, trained: the snapshots.
        samples: batches of the user's own.
        weakest: the weakest grade that counts.
    """

    def __init__(
        self,
        hunter: Hunter,
        fresh: Snapshot,
        trained: Snapshot,
        samples: Sequence[Batch],
        weakest: str = GRADES[-1],
    ) -> None:
        self._hunter = hunter
        self._weakest = weakest
        self._snapshot = trained
        self._fresh = State("fresh model", fresh.restore)
        self._trained = State("trained model", trained.restore, where=" after training")
        self._samples = [Described(batch, f"own data: {words_of(batch)}") for batch in samples[:_TYPICAL]]
        self._nearest: dict[Site, tuple[float, Described]] = {}

    def once(self, seed: int) -> Finding | None:
        """All phases, one after the other, until something is found or the budget is spent."""
        __tracebackhide__ = True
        boundary = list(self._hunter.domain.boundary(seed))
        found = self._boundary(boundary)
        if found is not None or not self._hunter.accepted:
            return found  # where every batch is refused, no other will do
        # By what they find at best, and the cheapest first; what would not fail comes after all that would.
        phases: list[tuple[str, Callable[[], Finding | None]]] = [
            ("scaled weights", lambda: self._scaled(boundary)),
            ("trained model", lambda: self._climbed(with_weights=False)),
            ("adversarial training", lambda: self._climbed(with_weights=True)),
            ("zeroed weights", lambda: self._zeroed(boundary)),
            ("trained model", lambda: self._boundary(drawn_batches(self._hunter.domain, seed=seed, count=_DRAWN))),
            ("trained model", lambda: self._climbed(with_weights=False, within=_NEAR)),
            ("adversarial training", lambda: self._climbed(with_weights=True, within=_NEAR)),
        ]
        for _, phase in sorted(phases, key=lambda phase: is_beyond(phase[0], self._weakest)):
            found = phase()
            if found is not None:
                return found
        return None

    def _boundary(self, batches: Iterable[Described]) -> Finding | None:
        """Batches at the edges of the domain, where training begins and where it has come to."""
        __tracebackhide__ = True
        return self._tried((state, batch) for batch in batches for state in (self._fresh, self._trained))

    def _scaled(self, boundary: Sequence[Described]) -> Finding | None:
        """A handful of batches on weights 2 to 32 times as large; a find is tried to be had with less."""
        __tracebackhide__ = True
        batches = [*self._samples, *spread(boundary, _BOUNDARY)]
        states = [scaled(self._hunter.weights, self._snapshot, factor) for factor in FACTORS]
        found = self._tried((state, batch) for state in states for batch in batches)
        return found if found is None else self._nearer(found)

    def _nearer(self, found: Finding) -> Finding:
        """The same fault with the trained weights as they are, if following the gradient gets there."""
        __tracebackhide__ = True
        for site in list(self._nearest):
            if found.source is not None and found.source.endswith(f":{site.spot[1]}"):
                better = self._climb(site, with_weights=False)
                if better is not None and better.source == found.source:
                    return better
        return found

    def _climbed(self, *, with_weights: bool, within: float = math.inf) -> Finding | None:
        """Follow the gradient of the operations that came nearest to their edges, and within so many bits."""
        __tracebackhide__ = True
        near = [(site, seen) for site, seen in self._hunter.near.ordered() if seen.bits <= within]
        for site in sites_to_climb(near, _SITES):
            found = self._climb(site, with_weights=with_weights)
            if found is not None or self._hunter.budget.is_spent:
                return found
        return None

    def _climb(self, site: Site, *, with_weights: bool) -> Finding | None:
        __tracebackhide__ = True
        if site not in self._nearest:
            return None
        distance, described = self._nearest[site]
        climb = Climb(self._hunter, site, self._trained, self._snapshot, with_weights=with_weights)
        found = climb.run(described, distance, ROUNDS)
        if climb.nearest is not None and not with_weights:
            self._nearest[site] = (climb.nearest.distance, climb.nearest.described)
        return found

    def _zeroed(self, boundary: Sequence[Described]) -> Finding | None:
        """Each weight tensor set to zero once: what divides by a weight needs exactly that."""
        __tracebackhide__ = True
        batches = (self._samples or list(boundary))[:1]
        weights = islice(self._hunter.weights, _ZEROED)
        states = [zeroed(weight, self._hunter.name_of(weight), self._snapshot) for weight in weights]
        return self._tried((state, batch) for state in states for batch in batches)

    def _tried(self, pairs: Iterable[tuple[State, Described]]) -> Finding | None:
        __tracebackhide__ = True
        growing: Counter[State] = Counter()
        for state, described in pairs:
            if self._hunter.budget.is_spent:
                return None
            if growing[state] >= _GROWING and not state.is_reached:
                continue
            grown = len(self._hunter.grown)
            watcher = Watcher() if state.is_reached else None
            found = self._hunter.probe(state, described, watcher)
            if found is not None:
                return found
            growing[state] += len(self._hunter.grown) - grown
            if watcher is not None and state is self._trained:
                self._keep_nearest(watcher, described)
        return None

    def _keep_nearest(self, watcher: Watcher, described: Described) -> None:
        for site, seen in watcher.seen.items():
            if seen.distance < self._nearest.get(site, (float("inf"), described))[0]:
                self._nearest[site] = (seen.distance, described)


def is_beyond(grade: str, weakest: str) -> bool:
    """Whether a find is of a grade less likely to be met than the weakest that counts."""
    return grade in GRADES and GRADES.index(grade) > GRADES.index(weakest)


def spread(batches: Sequence[Described], count: int) -> Iterator[Described]:
    """`count` of the batches, evenly from the whole list."""
    step = max(1.0, len(batches) / count)
    return (batches[int(number * step)] for number in range(min(count, len(batches))))


def _continued(
    training: Training, budget: Budget, seed: int, context: Mapping[str, object], *, explain: bool
) -> Finding | None:
    """The steps that a short training lacks of the 40, on its own batches; once more, traced, if one of them breaks."""
    __tracebackhide__ = True
    before = Snapshot(training.setup)
    try:
        found = _further(training, budget, seed, context)
        if found is not None and explain:
            before.restore()
            with traced(Tracing()):
                found = _further(training, budget, seed, context) or found
    except Exception:  # noqa: BLE001 - a schedule that is over, a sampler that is used up: the shorter training it is
        before.restore()
        return None
    if found is None:
        return None
    state = f"{training.run.steps} steps of the suite, and some more on its first batches"
    return replace(found, evidence={"grade": "typical data", "state": state, **found.evidence})


def _further(training: Training, budget: Budget, seed: int, context: Mapping[str, object]) -> Finding | None:
    __tracebackhide__ = True
    setup = training.setup
    options = Options(raises=False, check_parameters=True, explain=False)
    stepper = Stepper(setup, training.form, scheduled=False)
    with seeded(seed), modes(setup.model, training=True), Region(options, context) as region:
        while training.run.steps + region.run.steps < TYPICAL_STEPS and not budget.is_spent:
            for batch in training.samples:
                stepper.step(copied(batch))
            budget.spend(len(training.samples))
    return next((finding for finding in region.findings if finding.is_nonfinite), None)


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
