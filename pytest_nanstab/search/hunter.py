"""Tries one legal batch on one state of the model, and looks at gradients there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.attribution.history import Made
from pytest_nanstab.attribution.plan import traced
from pytest_nanstab.attribution.source import shown, spot_of_error
from pytest_nanstab.attribution.tracing import Tracing
from pytest_nanstab.batches.layout import plan
from pytest_nanstab.batches.recipe import Described
from pytest_nanstab.batches.trees import Path
from pytest_nanstab.findings import Finding
from pytest_nanstab.search import moves
from pytest_nanstab.search.budget import Budget
from pytest_nanstab.search.domain import Domain
from pytest_nanstab.search.near_misses import NearMisses
from pytest_nanstab.search.sites import Site, Watcher
from pytest_nanstab.search.states import State
from pytest_nanstab.suite.batching import copied
from pytest_nanstab.suite.driver import Stepper
from pytest_nanstab.suite.precision import Arithmetic, InapplicableError, explained, in_force
from pytest_nanstab.suite.setup import Batch, TrainingSetup, owned_parameters
from pytest_nanstab.suite.state import modes, seeded
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

_SMALL = 2.0**-12
_QUIET = Options(raises=False, check_parameters=True, explain=False)
# Exceptions that are looked into, of one wording and in all: each costs a traced step.
_LOOKS, _ALL_LOOKS = 2, 12
_STEP = re.compile(r"(?:at|after|of|before) (?:the first )?step(?: 1\b)?")


@dataclass
class Slopes:
    """The gradients of one site's objective: by field of the batch, and by weight (None where it plays no part)."""

    batch: dict[Path, Tensor]
    weights: list[Tensor | None]


class Hunter:
    """Tries legal batches on states of one setup; every try starts from the state bit for bit.

    Attributes:
        near: how close the operations with an edge came to it.
        tried: how many training steps were taken.
        accepted: how many of them on a batch built from a description, not on one of the user's own.
        refused, blind: what the model raised for batches that are only inferred to be legal, and for gradients.
        grown: findings of growth alone, in states that training has not reached or in a domain that is only inferred:
            reported, never a failure.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        form: Arithmetic,
        domain: Domain,
        budget: Budget,
        *,
        seed: int,
        context: Mapping[str, object],
        explain: bool = True,
    ) -> None:
        self.domain = domain
        self.budget = budget
        self.plan = plan(domain.spec, domain.sizes)
        self.weights = [weight for weight in owned_parameters(setup) if weight.requires_grad]
        self.near = NearMisses()
        self.grown: list[Finding] = []
        self.refused: Counter[str] = Counter()
        self.blind: Counter[str] = Counter()
        self._looked_into: Counter[str] = Counter()
        self.tried = 0
        self.accepted = 0
        self._setup = setup
        self._form = form
        self._seed = seed
        self._explain = explain
        self._context = {key: value for key, value in context.items() if key != "steps"}
        # The scale of a fresh scaler is a matter of the first steps, not of the batch: gradients are taken unscaled.
        self._stepper = Stepper(setup, form, scaled=False, scheduled=False)

    def name_of(self, weight: Tensor) -> str:
        """The dotted name of a weight in the model."""
        found = (name for name, parameter in self._setup.model.named_parameters() if parameter is weight)
        return next(found, "a parameter outside the model")

    # -- trying --------------------------------------------------------------------------------------------------------

    def probe(self, state: State, described: Described, watcher: Watcher | None = None) -> Finding | None:
        """One training step on one batch from one state; what fails, or None.

        Raises:
            Exception: the user's own, when the domain is declared: a legal batch must be accepted.
        """
        __tracebackhide__ = True
        self.budget.spend()
        try:
            found = self._step(state, described, watcher)
        except InapplicableError:
            raise
        except Exception as error:
            found, was_bad = self._behind(error, state, described)
            if found is None and not was_bad and isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                found = _of_matrix(error, state, described, self._context)
            if found is not None:
                return found
            if "CUDA error" in str(error) or (self.domain.is_declared and state.is_reached):
                _explain(error, described)
                raise
            self.refused[_first_line(error)] += 1
            return None
        self.tried += 1
        self.accepted += described.description is not None
        if watcher is not None and state.is_reached:
            self.near.note(watcher.seen)
        return None if found is None else self._judged(found, state, described)

    def _step(self, state: State, described: Described, watcher: Watcher | None = None) -> Finding | None:
        __tracebackhide__ = True
        state.enter()
        watching: AbstractContextManager[Any] = nullcontext() if watcher is None else watcher
        with self._in_place(), Region(_QUIET, self._context) as region:
            batch = self._repaired(described.batch)
            with watching:
                self._stepper.step(batch)
        found = next((finding for finding in region.findings if finding.is_nonfinite), None)
        return None if found is None else _about(found, state, described)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        with (
            seeded(self._seed),
            modes(self._setup.model, training=True),
            in_force(self._form),
            explained(self._form.precision),
        ):
            yield

    def _repaired(self, batch: Batch) -> Batch:
        """A copy of its own, which the user's code may write into, as legal as the user's `repair` makes it."""
        own = copied(batch)
        return own if self._setup.repair is None else self._setup.repair(own)

    def _judged(self, found: Finding, state: State, described: Described) -> Finding | None:
        """The find with its origin: the same step once more, traced. None for growth where nothing has grown so far."""
        __tracebackhide__ = True
        is_certain = state.is_reached and self.domain.is_declared
        if not self._explain and is_certain:
            return found
        tracing, again = Tracing(), None
        with traced(tracing):
            again = self._step(state, described)
        told = again or found
        # Beyond what training reaches, and what somebody has said to be legal, only an operation at its edge counts.
        if (tracing.excused and not is_certain) or (told.op is None and not state.is_reached):
            self.grown.append(told)
            return None
        return told if self._explain else found

    def _behind(self, error: Exception, state: State, described: Described) -> tuple[Finding | None, bool]:
        """What is not finite behind an exception: distributions, samplers and assertions refuse NaN in their own words.

        The step is taken once more, traced; an operation has to have made something bad of finite operands. Also says
        whether one has, when that counts for nothing.
        """
        __tracebackhide__ = True
        reason = _first_line(error)
        if self._looked_into[reason] >= _LOOKS or self._looked_into.total() >= _ALL_LOOKS:
            return None, False
        self._looked_into[reason] += 1
        tracing, told = Tracing(), None
        with traced(tracing):
            try:
                self._step(state, described)
            except type(error):
                made = tracing.last_born()
                told = None if made is None else tracing.told_at_end(_refusal(error, made, self._context), made)
        if told is None or (tracing.excused and not (state.is_reached and self.domain.is_declared)):
            return None, told is not None
        return _about(told, state, described), True

    # -- looking at gradients ------------------------------------------------------------------------------------------

    def slopes(self, state: State, described: Described, site: Site, worst: int) -> Slopes | None:
        """The gradients of what brings one site to its edge; None where it has none."""
        __tracebackhide__ = True
        self.budget.spend()
        state.enter()
        watcher = Watcher(keeps=True)
        try:
            # Under a watch of its own: what goes wrong here is no business of one around the search.
            with self._in_place(), Region(_QUIET, self._context), torch.enable_grad():
                batch, leaves = moves.differentiable(self.plan, self._repaired(described.batch))
                self._forward(batch, watcher, site)
                seen = watcher.seen.get(site)
                objective = None if seen is None else seen.level(worst)
                return None if objective is None else self._slopes(objective, watcher, batch, leaves)
        except Exception as error:  # noqa: BLE001 - told with the notes: without a gradient the other ways remain
            self.blind[_first_line(error)] += 1
            return None

    def _slopes(self, objective: Tensor, watcher: Watcher, batch: Batch, leaves: dict[Path, Tensor]) -> Slopes:
        looked_up = [lookup for lookup in watcher.lookups if lookup.output.requires_grad]
        wanted = [*leaves.values(), *self.weights, *(lookup.output for lookup in looked_up)]
        # In half precision the slope of a logarithm leaves the range before its operand reaches 0.
        small = _SMALL if torch.float16 in (self._form.cast, self._form.autocast_dtype) else 1.0
        gradients = torch.autograd.grad(objective * small, wanted, allow_unused=True)
        found = [None if g is None else _finite(g) / small for g in gradients]
        fields, rest = found[: len(leaves)], found[len(leaves) :]
        weights, rows = rest[: len(self.weights)], rest[len(self.weights) :]
        by_field = {path: g for path, g in zip(leaves, fields, strict=True) if g is not None and bool(g.any())}
        by_field.update(moves.token_gains(self.plan, batch, looked_up, rows))
        return Slopes(by_field, [None if g is None or not bool(g.any()) else g for g in weights])

    def _forward(self, batch: Batch, watcher: Watcher, site: Site) -> None:
        batch = self._form.batch(batch)
        if self._setup.training_step is None:
            with self._form.autocast(), watcher:
                self._setup.loss(self._setup.model, batch)
            return
        try:
            with _before_backward(lambda: _stop(watcher, site)), self._form.autocast(), watcher:
                self._setup.training_step(batch)
        except _SeenEnough:
            pass

    def notes(self) -> list[str]:
        """What a reader of the result should know about how it came about."""
        known = "declared" if self.domain.is_declared else "inferred from the first batches: only values seen are legal"
        budget = self.budget
        lines = [
            f"{self.tried} training steps tried, {budget.used} evaluations, {budget.elapsed:.1f} s; domain {known}"
        ]
        lines += [f"{count} generated batches were refused: {reason}" for reason, count in self.refused.items()]
        lines += [f"{count} times no gradient was to be had: {reason}" for reason, count in self.blind.items()]
        if budget.evaluations is not None and budget.used < budget.evaluations and budget.is_spent:
            lines.append(f"stopped after {budget.seconds:g} s")
        lines += [
            f"only growth, not failed: {found.message} ({found.evidence.get('state', found.evidence['grade'])})"
            for found in self.grown[:1]
        ]
        return [*lines, *self.near.lines()]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _refusal(error: Exception, made: Made, context: Mapping[str, object]) -> Finding:
    word = "NaN" if made.bad_nan else "Inf"
    return Finding(
        kind="nonfinite-output",
        message=f"{word} made the step raise {type(error).__name__} at step 1",
        step=1,
        phase="forward",
        source=shown(spot_of_error(error)),
        evidence={"error": _first_line(error), **context},
    )


class _SeenEnough(BaseException):
    """The forward part of a user's training step is over; it must not be caught by it."""


def _stop(watcher: Watcher, site: Site) -> None:
    if site in watcher.seen:
        raise _SeenEnough


@contextmanager
def _before_backward(call: Callable[[], None]) -> Iterator[None]:
    """Call something before each backward pass that user code starts."""
    original = torch.autograd.backward

    def backward(*args: Any, **kwargs: Any) -> None:
        call()
        original(*args, **kwargs)

    torch.autograd.backward = backward
    try:
        yield
    finally:
        torch.autograd.backward = original


def _finite(gradient: Tensor) -> Tensor:
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    if gradient.is_complex():  # complex weights are left where they are
        return torch.zeros(())
    return gradient.float().nan_to_num(0.0, 1e30, -1e30) if gradient.dtype != torch.float64 else gradient.nan_to_num()


def _about(found: Finding, state: State, described: Described) -> Finding:
    """A finding of a single step, told as one about the batch."""
    evidence = {key: value for key, value in found.evidence.items() if key != "batch"}
    told = {"grade": state.grade, **({"state": state.words} if state.words else {})}
    return replace(
        found,
        message=_STEP.sub(f"for a legal batch{state.where}", found.message, count=1),
        step=None,
        evidence={**told, "batch_description": described.words, **evidence},
    )


def _of_matrix(error: Exception, state: State, described: Described, context: Mapping[str, object]) -> Finding:
    """torch refuses to factorise a singular matrix instead of returning NaN: the same fault, said in another way."""
    words = (str(error).splitlines() or [""])[0]
    op = words.partition(":")[0].removeprefix("torch.").removeprefix("linalg.") or "linalg"
    told = {"grade": state.grade, **({"state": state.words} if state.words else {})}
    return Finding(
        kind="nonfinite-output",
        message=f"{op} of a singular matrix for a legal batch{state.where}",
        phase="forward",
        op=op,
        source=shown(spot_of_error(error)),
        evidence={**told, "batch_description": described.words, "error": words, **context},
        cause="the matrix is singular, or not positive definite, up to rounding",
        remedy="add a small multiple of the identity before factorising (jitter), or use float64",
    )


def _explain(error: Exception, described: Described) -> None:
    """Tell which legal batch the user's code refused, where Python lets an exception carry notes (3.11)."""
    add_note = getattr(error, "add_note", None)
    if add_note is not None:
        add_note(
            f"for a batch that `domain` and `sizes` call legal: {described.words}\n"
            "narrow them in the TrainingSetup, or let `repair` map it to a legal one"
        )
