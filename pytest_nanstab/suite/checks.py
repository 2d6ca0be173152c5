"""What each item of a suite does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pytest_nanstab.attribution.source import is_user_file, place
from pytest_nanstab.checks.data import Survey, notes_on_splits, survey_batches
from pytest_nanstab.config import GRADES
from pytest_nanstab.errors import StabilityError
from pytest_nanstab.findings import Finding, error_from
from pytest_nanstab.ranks.group import current
from pytest_nanstab.ranks.merging import shared
from pytest_nanstab.suite import judging
from pytest_nanstab.suite.batching import cycle, nonfinite_tensor
from pytest_nanstab.suite.driver import describe
from pytest_nanstab.suite.evaluate import MAX_BATCHES, MAX_SECONDS, eval_source, evaluate, is_data_fault
from pytest_nanstab.suite.expand import ItemRequest
from pytest_nanstab.suite.explaining import explained
from pytest_nanstab.suite.precision import InapplicableError
from pytest_nanstab.suite.projection import left_out, parity_notes, projections, underflows
from pytest_nanstab.suite.setup import Batches, TrainingSetup
from pytest_nanstab.suite.shared import Training, release, skipped, training_of
from pytest_nanstab.suite.spec import Check, Role
from pytest_nanstab.suite.state import modes, seeded
from pytest_nanstab.watching.run import Run

_UNLIKELY = GRADES[GRADES.index("trained model") + 1 :]


@dataclass
class Verdict:
    """What one check saw with one seed.

    Attributes:
        failing: what the item fails with, the root cause first.
        run: the training it read.
        init_scale: the measured rows of `init_scale`.
        parity: how far the precision is from "64-true".
        notes: free lines.
        skip: the skip that came instead.
        setup: what was trained.
    """

    failing: list[Finding] = field(default_factory=list)
    run: Run | None = None
    init_scale: list[dict[str, Any]] | None = None
    parity: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    skip: BaseException | None = None
    setup: TrainingSetup | None = None


def execute(request: ItemRequest) -> None:
    """Run an item's check with every seed and raise what it found.

    Raises:
        StabilityError: with the findings of the first failing seed.
        pytest.skip.Exception: it does not apply, or the fault is another item's, with every seed.
    """
    __tracebackhide__ = True
    verdicts = {}
    try:
        for seed in request.seeds:  # a comprehension would be a frame in users' tracebacks
            verdicts[seed] = _one_seed(request, seed)
        _explain(request, verdicts)
    finally:
        release(request)
    failed = [seed for seed, verdict in verdicts.items() if verdict.failing]
    if failed:
        verdicts[failed[0]].failing = _told(request, verdicts[failed[0]], failed)
    ran = [seed for seed, verdict in verdicts.items() if verdict.skip is None]
    if ran:
        shown = (failed or ran)[0]
        _record(request, shown, verdicts[shown])
    if failed:
        raise error_from(verdicts[failed[0]].failing)
    skip = verdicts[request.seeds[0]].skip
    if not ran and skip is not None:
        raise skip


def _explain(request: ItemRequest, verdicts: dict[int, Verdict]) -> None:
    """Name the operation behind the findings of the first failing seed, which are those that are told."""
    __tracebackhide__ = True
    seed = next((seed for seed, verdict in verdicts.items() if verdict.failing), None)
    if seed is not None:
        verdicts[seed].failing = explained(request, seed, verdicts[seed].failing)


def _one_seed(request: ItemRequest, seed: int) -> Verdict:
    __tracebackhide__ = True
    group, label = current(), f"{request.item.nodeid} {seed}"
    if group is None:
        return _of_this_rank(request, seed)
    try:
        verdict = _of_this_rank(request, seed)
    except BaseException:
        group.pass_by(label)
        raise
    verdict.failing = shared(group, label, verdict.failing)
    verdict.skip = None if verdict.failing else verdict.skip
    return verdict


def _of_this_rank(request: ItemRequest, seed: int) -> Verdict:
    __tracebackhide__ = True
    try:
        return _CHECKS[request.case.check](request, seed)
    except InapplicableError as error:
        return Verdict(skip=skipped(str(error)))
    except pytest.skip.Exception as skip:
        return Verdict(skip=skip)
    except StabilityError as error:
        if not error.findings:
            raise
        return Verdict(failing=list(error.findings))


def _record(request: ItemRequest, seed: int, verdict: Verdict) -> None:
    record = request.record
    record.seed, record.run, record.init_scale = seed, verdict.run, verdict.init_scale
    record.parity = verdict.parity
    record.findings = tuple(verdict.failing)
    record.notes = verdict.notes


def _told(request: ItemRequest, verdict: Verdict, failed: list[int]) -> list[Finding]:
    """The findings with a user line and the command that repeats this item; the first says how many seeds fail."""
    of_data = request.case.check == "finite_data"  # one line for all that a walk has found
    told = [
        replace(
            finding,
            source=finding.source or (None if of_data and index else _place(request, finding, verdict.setup)),
            evidence={"again": request.again, **finding.evidence},
        )
        for index, finding in enumerate(verdict.failing)
    ]
    seeds = len(request.seeds)
    if seeds == 1:
        return told
    message = f"{told[0].message} ({len(failed)} of {seeds} seeds)"
    which = f"{len(failed)} of {seeds} fail: {', '.join(map(str, failed))}"
    return [replace(told[0], message=message, evidence={**told[0].evidence, "seeds": which}), *told[1:]]


def _place(request: ItemRequest, finding: Finding, setup: TrainingSetup | None) -> str | None:
    """Where to look, when no line of the user's was running: the loss, or the factory that made model and optimizer."""
    if finding.kind == "lost-precision":  # its line is proved, or nowhere in the user's files
        return None
    candidates: list[Callable[..., object]] = [request.item.function]
    if setup is not None and finding.phase in ("forward", "backward", "eval"):
        candidates.insert(0, setup.training_step or setup.loss)
    for candidate in candidates:
        code = getattr(inspect.unwrap(candidate), "__code__", None)
        if code is not None and is_user_file(code.co_filename):
            return place(code.co_filename, code.co_firstlineno)
    return None


# --- checks that read no training


def _init_scale(request: ItemRequest, seed: int) -> Verdict:
    __tracebackhide__ = True
    from pytest_nanstab.checks.init_scale import init_scale_report, init_scale_rows

    scheme = request.spec.init_scale
    with seeded(seed):
        setup = request.make_setup()
        batch = next(cycle(setup.batches))
        if nonfinite_tensor(batch) is not None:
            batch = None  # what a forward pass would show is the data's fault, and finite_data's to tell
        with modes(setup.model, training=True), _inapplicable(ValueError, "no weight matrix", "init_scale"):
            rows = init_scale_rows(setup.model, scheme)
            report = init_scale_report(setup.model, scheme, batch=batch, loss=None if batch is None else setup.loss)
    return Verdict(report.findings, init_scale=rows, notes=report.notes)


def _finite_data(request: ItemRequest, seed: int) -> Verdict:
    __tracebackhide__ = True
    verdict = Verdict()
    with seeded(seed):
        setup = request.make_setup()
        sources = {"batches": setup.batches}
        if setup.eval_batches is not None and setup.eval_batches is not setup.batches:
            sources["eval_batches"] = setup.eval_batches
        surveys = {}
        for name, source in sources.items():  # a comprehension would be a frame in users' tracebacks
            surveys[name] = _survey(name, source, setup.domain, len(sources) > 1)
    for name, survey in surveys.items():
        split = {} if name == "batches" else {"split": name}
        verdict.failing += [replace(found, evidence={**split, **found.evidence}) for found in survey.findings]
        looked_at = "batch was" if survey.batches == 1 else f"{survey.batches} batches were"
        unseen = [] if survey.complete else [f"the first {looked_at} looked at, not all"]
        verdict.notes += [f"{name}: {note}" for note in [*unseen, *survey.notes]]
    if len(surveys) > 1:
        verdict.notes += notes_on_splits(**surveys)
    return verdict


def _survey(name: str, source: Batches, domain: object, statistics: bool) -> Survey:
    __tracebackhide__ = True
    with _inapplicable(ValueError, "no number in any", "finite_data"):
        return survey_batches(
            source,
            domain=domain,
            max_batches=MAX_BATCHES,
            seconds=MAX_SECONDS,
            statistics=statistics,
            name=f"finite_data, {name}",
        )


@contextmanager
def _inapplicable(kind: type[Exception], words: str, check: str) -> Iterator[None]:
    """Make the error by which a check says that there is nothing to check a skip."""
    __tracebackhide__ = True
    try:
        yield
    except kind as error:
        if words not in str(error):
            raise
        raise InapplicableError(f"{check} does not apply: {error}") from error


# --- checks that read the training


def _finite_steps(request: ItemRequest, seed: int) -> Verdict:
    __tracebackhide__ = True
    training = training_of(request, seed)
    failing = judging.owned(training.findings, "finite_steps")
    if failing and failing[0].kind == "nonfinite-input" and is_data_fault(training.last_batch, training.setup.domain):
        _leave_data(request, failing[0], training.setup.batches)
    return Verdict(failing, run=training.run, setup=training.setup)


def _finite_eval(request: ItemRequest, seed: int) -> Verdict:
    __tracebackhide__ = True
    training = _finished_training(request, seed)
    if training.evaluation is None:
        found = evaluate(training.setup, training.form, seed, _context(request, seed, training))
    else:
        found = training.evaluation.get()
    if found and found[0].phase == "data":
        _leave_data(request, found[0], eval_source(training.setup))
    return Verdict(found, run=training.run, setup=training.setup)


def _gradient_bounds(request: ItemRequest, seed: int) -> Verdict:
    __tracebackhide__ = True
    training = training_of(request, seed)
    limits = judging.owned(training.findings, "gradient_bounds")
    stop = training.stop
    if stop is not None:
        # A bound broken before the end is its own fault; what the NaN itself breaks is not.
        earlier = [limit for limit in limits if limit.step is not None and limit.step < (stop.step or 0)]
        if earlier:
            return Verdict(earlier, run=training.run, setup=training.setup)
        _leave_to_owner(request, stop, "finite_steps")
        return Verdict([stop], run=training.run, setup=training.setup)
    from pytest_nanstab.checks.gradients import gradient_findings, notes

    trained = training.judged(_context(request, seed, training))
    failing = [*limits, *gradient_findings(trained)]
    return Verdict(failing, run=training.run, setup=training.setup, notes=[*training.run.notes, *notes(trained)])


def _headroom(request: ItemRequest, seed: int) -> Verdict:
    __tracebackhide__ = True
    training = _finished_training(request, seed)
    failing = judging.owned(training.findings, "headroom")
    run = training.run
    apart = training.parity
    notes = [*projections(run.headroom), *underflows(run.underflow), *left_out(run.left_out)]
    notes += [] if apart is None else parity_notes(apart)
    known = apart if isinstance(apart, dict) else None
    return Verdict(failing, run=run, setup=training.setup, notes=notes, parity=known)


def _adversarial_batches(request: ItemRequest, seed: int) -> Verdict:
    __tracebackhide__ = True
    from pytest_nanstab.search.hunts import attack, is_beyond

    if current() is not None:
        raise InapplicableError(
            "a search follows what one process sees, and the ranks of a group must go through the same batches"
        )
    training = _finished_training(request, seed)
    with seeded(seed):
        context = _context(request, seed, training)
        explain = request.explain != "off"
        found, notes = attack(training, seed, context, explain=explain, weakest=request.fail_grade)
    failing = [] if found is None else [replace(found, evidence={**found.evidence, **_acceptance(found)})]
    if found is not None and is_beyond(str(found.evidence.get("grade")), request.fail_grade):
        notes = [*notes, f"only reported, nanstab_fail_grade is {request.fail_grade!r}: {found.message}"]
        failing = []
    return Verdict(failing, run=training.run, setup=training.setup, notes=notes)


def _acceptance(found: Finding) -> dict[str, str]:
    """How to let pass what no training of today reaches."""
    grade = found.evidence.get("grade")
    if grade not in _UNLIKELY:
        return {}
    return {"accept": f"nanstab_fail_grade = {GRADES[GRADES.index(grade) - 1]} in the ini file only reports it"}


def _baseline(request: ItemRequest, seed: int) -> Verdict:
    __tracebackhide__ = True
    from pytest_nanstab.baselines.items import ItemBaselines
    from pytest_nanstab.suite.spread import other_runs

    training = _finished_training(request, seed)
    found, notes = ItemBaselines(request.item).check(
        training.run,
        device=training.form.device_type,
        precision=training.form.precision,
        seed=seed,
        others=lambda: other_runs(request, seed),
    )
    context = {key: value for key, value in _context(request, seed, training).items() if key != "steps"}
    failing = [] if found is None else [replace(found, evidence={**context, **found.evidence})]
    return Verdict(failing, run=training.run, setup=training.setup, notes=notes)


def _finished_training(request: ItemRequest, seed: int) -> Training:
    """The training, if it went to its end; else the item that owns the fault is named, or this one fails."""
    __tracebackhide__ = True
    training = training_of(request, seed)
    if training.stop is not None:
        _leave_to_owner(request, training.stop, "finite_steps")
        raise error_from([training.stop])
    return training


def _leave_data(request: ItemRequest, found: Finding, source: Batches) -> None:
    """Skip for finite_data, when it is certain to meet the same batch: a stream may give it another."""
    __tracebackhide__ = True
    if isinstance(source, Sequence):
        _leave_to_owner(request, found, "finite_data")


def _leave_to_owner(request: ItemRequest, stop: Finding, check: Check) -> None:
    """Skip, when the item that owns the fault runs in this session."""
    __tracebackhide__ = True
    owner = request.sibling(check)
    if owner is None:
        return
    what = "training ended with non-finite values" if stop.step is None else f"training stopped at step {stop.step}"
    raise skipped(f"{'non-finite data' if stop.phase == 'data' else what}: see {owner.name}")


def _context(request: ItemRequest, seed: int, training: Training) -> dict[str, object]:
    return describe(request.spec.steps, seed, training.form)


_CHECKS: dict[Role, Callable[[ItemRequest, int], Verdict]] = {
    "init_scale": _init_scale,
    "finite_data": _finite_data,
    "finite_steps": _finite_steps,
    "finite_eval": _finite_eval,
    "gradient_bounds": _gradient_bounds,
    "adversarial_batches": _adversarial_batches,
    "headroom": _headroom,
    "baseline": _baseline,
}
