"""Legal batches that ordinary data never shows, tried on states of the model it passes through."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pytest_nanstab.attribution.plan import traced
from pytest_nanstab.attribution.tracing import Tracing
from pytest_nanstab.batches.boundary import boundary_batches
from pytest_nanstab.batches.infer import infer_spec
from pytest_nanstab.batches.layout import with_dtype
from pytest_nanstab.batches.recipe import Described
from pytest_nanstab.findings import Finding
from pytest_nanstab.suite.batching import tensors_in
from pytest_nanstab.suite.driver import Stepper
from pytest_nanstab.suite.precision import Arithmetic, InapplicableError, explained, in_force
from pytest_nanstab.suite.setup import Batch, TrainingSetup
from pytest_nanstab.suite.state import Snapshot, modes, seeded
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

NOTHING = "adversarial batches do not apply"
_HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_STEP = re.compile(r"(?:at|after|of|before) (?:the first )?step(?: 1\b)?")


@dataclass(frozen=True)
class State:
    """A state of the model worth trying: how findings call it, and what puts the model there."""

    grade: str
    enter: Callable[[], None]


@dataclass(frozen=True)
class Domain:
    """What legal batches look like, and whether the user said so or the samples did."""

    spec: Any
    sizes: Mapping[str, tuple[int, int]] | None
    is_declared: bool


@dataclass
class Budget:
    """How many evaluations and seconds a hunt may take."""

    evaluations: int | None
    seconds: float
    used: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def is_spent(self) -> bool:
        """Whether one of the two is used up; the first evaluation is always granted."""
        if self.evaluations is not None and self.used >= self.evaluations:
            return True
        return self.used > 0 and time.monotonic() - self.started > self.seconds


def domain_of(setup: TrainingSetup, samples: Sequence[Batch], form: Arithmetic) -> Domain:
    """The declared domain, or what the samples prove legal; float fields in the run's own dtype.

    Raises:
        InapplicableError: no domain is declared and the samples hold no float or int tensor to vary.
    """
    half = None if form.cast is None else _HALVES.get(form.cast)
    if setup.domain is not None:
        spec, sizes, is_declared = setup.domain, setup.sizes, True
    else:
        if not any(tensor.dtype is not torch.bool for batch in samples for tensor in tensors_in(batch)):
            raise InapplicableError(f"{NOTHING}: the batches hold no float or int tensor, and no domain is declared")
        spec, sizes, is_declared = _inferred(samples)
    return Domain(spec if half is None else with_dtype(spec, half), sizes, is_declared)


def _inferred(samples: Sequence[Batch]) -> tuple[Any, Mapping[str, tuple[int, int]], bool]:
    try:
        inferred = infer_spec(*samples)
    except (TypeError, ValueError) as error:
        raise InapplicableError(
            f"the batches tell no domain ({error}); declare one in TrainingSetup(domain=...)"
        ) from error
    return inferred.spec, inferred.sizes, False


class Hunter:
    """Tries legal batches on states of one setup; every try starts from the state bit for bit."""

    def __init__(
        self,
        setup: TrainingSetup,
        form: Arithmetic,
        domain: Domain,
        *,
        seed: int,
        context: Mapping[str, object],
        explain: bool = True,
    ) -> None:
        self.domain = domain
        self._setup = setup
        self._form = form
        self._seed = seed
        self._explain = explain
        self._context = {key: value for key, value in context.items() if key != "steps"}
        # The scale of a fresh scaler is a matter of the first steps, not of the batch: gradients are taken unscaled.
        self._stepper = Stepper(setup, form, scaled=False)
        self.tried = 0
        self.refused: dict[str, int] = {}

    def hunt(self, states: Sequence[State], batches: Iterator[Described], budget: Budget) -> Finding | None:
        """Try each batch on each state; the first finding, or None once batches or budget end."""
        __tracebackhide__ = True
        for described in batches:
            for state in states:
                if budget.is_spent:
                    return None
                budget.used += 1
                found = self.probe(state, described)
                if found is not None:
                    return self._explained(found, state, described)
        return None

    def _explained(self, found: Finding, state: State, described: Described) -> Finding:
        """The finding with its origin: the same step once more, traced."""
        __tracebackhide__ = True
        if not self._explain:
            return found
        again: list[Finding | None] = []
        with traced(Tracing()):
            again.append(self._step(state, described))
        self.tried -= 1
        return again[0] or found

    def probe(self, state: State, described: Described) -> Finding | None:
        """One training step on one batch, from one state.

        Raises:
            Exception: the user's own, when the domain is declared: a legal batch must be accepted.
        """
        __tracebackhide__ = True
        try:
            return self._step(state, described)
        except InapplicableError:
            raise
        except Exception as error:
            if self.domain.is_declared or "CUDA error" in str(error):
                _explain(error, described)
                raise
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            self.refused[reason] = self.refused.get(reason, 0) + 1
            return None

    def _step(self, state: State, described: Described) -> Finding | None:
        __tracebackhide__ = True
        state.enter()
        options = Options(raises=False, check_parameters=True, explain=False)
        with (
            seeded(self._seed),
            modes(self._setup.model, training=True),
            in_force(self._form),
            Region(options, self._context) as region,
            explained(self._form.precision),
        ):
            batch = described.batch if self._setup.repair is None else self._setup.repair(described.batch)
            self._stepper.step(batch)
        self.tried += 1
        found = next((finding for finding in region.findings if finding.is_nonfinite), None)
        return None if found is None else _about(found, state.grade, described)

    def notes(self, budget: Budget) -> list[str]:
        """What a reader of the result should know about how it came about."""
        known = "declared" if self.domain.is_declared else "inferred from the first batches"
        lines = [f"{self.tried} generated batches tried; domain {known}"]
        lines += [f"{count} generated batches were refused: {reason}" for reason, count in self.refused.items()]
        if budget.evaluations is not None and budget.used < budget.evaluations and budget.is_spent:
            lines.append(f"stopped after {budget.seconds:g} s")
        return lines


def drawn_batches(domain: Domain, *, seed: int, count: int) -> Iterator[Described]:
    """Batches that Hypothesis draws, without shrinking and without its database; the same seed gives the same ones."""
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import seed as with_seed

    from pytest_nanstab.batches.drawing import described_from_spec

    drawn: list[Described] = []

    @with_seed(seed)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        derandomize=False,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(described_from_spec(domain.spec, sizes=domain.sizes))
    def collect(described: Described) -> None:
        drawn.append(described)

    collect()
    return iter(drawn)


def all_batches(domain: Domain, *, seed: int) -> Iterator[Described]:
    """First the short list of the edges of the domain, then drawn batches without end."""
    yield from boundary_batches(domain.spec, domain.sizes, seed=seed)
    chunk = seed
    while True:
        yield from drawn_batches(domain, seed=chunk, count=16)
        chunk += 1_000_003  # far from any seed a user would take next


def scaled(setup_weights: Sequence[torch.Tensor], snapshot: Snapshot, factor: float) -> Callable[[], None]:
    """Enter a snapshot with its trained weights multiplied by a factor."""

    def enter() -> None:
        snapshot.restore()
        with torch.no_grad():
            for weight in setup_weights:
                weight.mul_(factor)

    return enter


def _about(found: Finding, grade: str, described: Described) -> Finding:
    """A finding of a single step, told as one about the batch."""
    evidence = {key: value for key, value in found.evidence.items() if key != "batch"}
    return replace(
        found,
        message=_STEP.sub("for a legal batch", found.message, count=1),
        step=None,
        evidence={"grade": grade, "batch_description": described.words, **evidence},
    )


def _explain(error: Exception, described: Described) -> None:
    """Tell which legal batch the user's code refused, where Python lets an exception carry notes (3.11)."""
    add_note = getattr(error, "add_note", None)
    if add_note is not None:
        add_note(
            f"for a batch that `domain` and `sizes` call legal: {described.words}\n"
            "narrow them in the TrainingSetup, or let `repair` map it to a legal one"
        )
