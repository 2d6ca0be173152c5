"""One training for all the items that read it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

import pytest
from torch import Tensor

from pytest_nanstab.checks._stuck import Trained
from pytest_nanstab.findings import Finding
from pytest_nanstab.propagation.passes import Pass
from pytest_nanstab.ranks.sharding import any_sharded
from pytest_nanstab.suite.driver import Stepper, describe, drive
from pytest_nanstab.suite.evaluate import evaluate
from pytest_nanstab.suite.exactness import integers_lost
from pytest_nanstab.suite.expand import ItemRequest
from pytest_nanstab.suite.observing import Start, observed_passes
from pytest_nanstab.suite.parity import parity
from pytest_nanstab.suite.precision import Arithmetic, InapplicableError, arithmetic, check_precision
from pytest_nanstab.suite.setup import Batch, TrainingSetup, optimizers_of
from pytest_nanstab.suite.state import Snapshot, modes, seeded
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region
from pytest_nanstab.watching.run import Run

KEPT_GROUPS = 8  # groups held at once when parametrised items interleave; one more costs a training again
SAMPLES = 4  # batches kept from the training to learn from what legal data looks like
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """A value, or the exception that came instead; each reader gets the same."""

    value: T | None = None
    error: BaseException | None = None
    traceback: TracebackType | None = None

    def get(self) -> T:
        """The value; raises the exception with the traceback it had, not with those of its readers."""
        __tracebackhide__ = True
        if self.error is not None:
            raise self.error.with_traceback(self.traceback)
        assert self.value is not None
        return self.value


def outcome_of(call: Callable[[], T]) -> Outcome[T]:
    """Call and keep whatever comes: pytest's skip and fail are outcomes too, an interrupt is not."""
    __tracebackhide__ = True
    try:
        return Outcome(call())
    except (Exception, pytest.skip.Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - every reader raises it again
        return Outcome(error=error, traceback=error.__traceback__)


@dataclass
class Training:
    """What a finished, or stopped, training leaves for the items that read it.

    Attributes:
        setup: the trained objects.
        form: the arithmetic they were trained in.
        run: its measurements.
        findings: everything found, in order.
        samples: the first batches, as the user's code gave them.
        last_batch: the batch of the last step.
        fresh: the state before the first step, where an item wants it.
        evaluation: what evaluation found, where an item wants it.
        stuck: names of the parameters that no step changed although each had a gradient and a learning rate.
        restored: names of those that something put back after every step.
        unmoved: whether no parameter of the model has changed although some had a gradient.
        passes: what observed passes over the first batches showed at the end, where an item wants it.
        parity: how far the run's precision is from "64-true", or why that is not known, where an item wants it.
        seconds: how long it took.
    """

    setup: TrainingSetup
    form: Arithmetic
    run: Run
    findings: list[Finding]
    samples: list[Batch]
    last_batch: Batch
    fresh: Snapshot | None = None
    evaluation: Outcome[list[Finding]] | None = None
    stuck: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    unmoved: bool = False
    passes: Sequence[Pass] = ()
    parity: dict[str, Any] | str | None = None
    seconds: float = 0.0

    @property
    def stop(self) -> Finding | None:
        """The finding after which the training means nothing any more."""
        return next((finding for finding in self.findings if finding.is_nonfinite), None)

    def judged(self, context: Mapping[str, object]) -> Trained:
        """What the heuristics about gradients look at."""
        return Trained(
            self.setup.model,
            optimizers_of(self.setup),
            self.run,
            passes=self.passes,
            stuck=self.stuck,
            restored=self.restored,
            unmoved=self.unmoved,
            context=context,
        )


@dataclass
class _Store:
    groups: OrderedDict[str, dict[int, Outcome[Training]]] = field(default_factory=OrderedDict)


_STORE = pytest.StashKey[_Store]()


def skipped(reason: str) -> BaseException:
    """A skip that pytest locates at the item: the frames that raise it are ours and hidden."""
    skip = pytest.skip.Exception(reason)
    skip._use_item_location = True
    return skip


def training_of(request: ItemRequest, seed: int) -> Training:
    """The training behind an item: done now, or by an item before it.

    What the training raised is raised again in the item that owns it, `finite_steps`, where that runs in this session;
    the others skip then.
    """
    __tracebackhide__ = True
    store = request.item.config.stash.setdefault(_STORE, _Store())
    group = store.groups.setdefault(request.group, {})
    store.groups.move_to_end(request.group)
    while len(store.groups) > KEPT_GROUPS:
        store.groups.popitem(last=False)
    if seed not in group:
        group[seed] = outcome_of(partial(_train, request, seed))
    error, owner = group[seed].error, request.sibling("finite_steps")
    if isinstance(error, Exception) and not isinstance(error, InapplicableError) and owner not in (None, request.item):
        raise skipped(f"training raised {type(error).__name__}: see {owner.name}")
    return group[seed].get()


def trained_apart(request: ItemRequest, seed: int) -> Training:
    """A training of its own, which no other item reads."""
    __tracebackhide__ = True
    with seeded(seed):
        return _driven(request, request.make_setup(), seed)


def release(request: ItemRequest) -> None:
    """Forget a training once the last item that reads it has run."""
    store = request.item.config.stash.get(_STORE, None)
    if store is not None and request.is_last_of_group():
        store.groups.pop(request.group, None)


def forget(config: pytest.Config) -> None:
    """Drop every training: for the end of the session."""
    config.stash[_STORE] = _Store()


def _train(request: ItemRequest, seed: int) -> Training:
    __tracebackhide__ = True
    with seeded(seed):
        setup = request.make_setup()
        training = _driven(request, setup, seed)
    if request.sibling("finite_eval") is not None and training.stop is None:
        # Now, not later: this item's fixtures, which the factory may hold on to, end with it.
        context = describe(request.spec.steps, seed, training.form)
        training.evaluation = outcome_of(partial(evaluate, setup, training.form, seed, context))
    return training


def _driven(request: ItemRequest, setup: TrainingSetup, seed: int) -> Training:
    __tracebackhide__ = True
    precision = check_precision(request.case.precision or "32-true")
    options = Options(
        raises=False,
        limits=request.limits,
        headroom=True,
        update_ratio=True,
        check_parameters=True,
        track_parameters=True,
        details=True,
        explain=False,
        shares=request.group,
    )
    steps, began = request.spec.steps, time.monotonic()
    with modes(setup.model, training=True), arithmetic(setup, precision, device=request.device) as form:
        fresh = Snapshot(setup) if request.sibling("adversarial_batches") is not None else None
        judged = request.sibling("gradient_bounds") is not None
        stepper = Stepper(setup, form)
        start = Start(setup.model) if judged else None
        with Region(options, describe(steps, seed, form)) as region:
            *samples, last = drive(stepper, region, steps=steps, keep=SAMPLES if judged or fresh is not None else 0)
        seconds = time.monotonic() - began
        sound = judged and not any(finding.is_nonfinite for finding in region.findings)
        passes = observed_passes(setup, form, samples) if sound else []
        findings = list(region.findings)
        apart = None
        # Passes apart copy the model, or put its parts back afterwards: what gathers its weights by hooks would break.
        whole = not any_sharded(setup.model.parameters())
        if whole and request.sibling("headroom") is not None and not any(f.is_nonfinite for f in findings):
            findings += integers_lost(setup, form, last, findings)
            apart = parity(setup, form, last) if precision != "64-true" else None
    return Training(
        setup,
        form,
        region.run,
        findings,
        samples,
        last,
        fresh,
        stuck=names_of(setup, [] if region.stuck is None else region.stuck.found()),
        restored=names_of(setup, [] if region.stuck is None else region.stuck.put_back()),
        unmoved=start is not None and start.unmoved(),
        passes=passes,
        parity=apart,
        seconds=seconds,
    )


def names_of(setup: TrainingSetup, parameters: Sequence[Tensor]) -> tuple[str, ...]:
    """Dotted names in the model; those of other parameters say what they are."""
    known = {id(parameter): name for name, parameter in setup.model.named_parameters()}
    return tuple(known.get(id(parameter), "a parameter outside the model") for parameter in parameters)
