"""A pass over the evaluation batches with a trained model: outputs and loss must stay finite."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sized

import torch

from pytest_nanstab import progress
from pytest_nanstab.checks.data import survey_batches
from pytest_nanstab.findings import Finding
from pytest_nanstab.ranks.group import current
from pytest_nanstab.suite.batching import epoch, nonfinite_tensor
from pytest_nanstab.suite.driver import checked_loss
from pytest_nanstab.suite.precision import Arithmetic, explained, in_force
from pytest_nanstab.suite.setup import Batch, Batches, TrainingSetup
from pytest_nanstab.suite.state import modes, seeded
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

MAX_BATCHES = 10_000
MAX_UNSIZED = 1_000  # a source without a length may be an endless stream, and has to end somewhere
MAX_SECONDS = 60.0


def evaluate(setup: TrainingSetup, form: Arithmetic, seed: int, context: Mapping[str, object]) -> list[Finding]:
    """Evaluate in eval mode without gradients; the findings of the first bad batch.

    At most 10 000 batches (1000 of a source without a length) or 60 s.

    Raises:
        ValueError: there is no batch to evaluate on.
    """
    __tracebackhide__ = True
    known = {key: value for key, value in context.items() if key != "steps"}
    bad_loss: Finding | None = None
    with (
        seeded(seed),
        modes(setup.model, training=False),
        in_force(form),
        torch.no_grad(),
        Region(Options(raises=False, explain=False, shares="evaluation"), known) as region,
        progress.stage("evaluation", "batch {}") as tell,
    ):
        for number, batch in enumerate(_eval_batches(setup), start=1):
            if tell is not None:
                tell(number)
            region.context["batch"] = number
            found = _evaluate_batch(setup, form, batch, number, region)
            bad_loss = bad_loss or found
            # Other ranks would wait for this one, in this batch and those that follow.
            if region.ranks.group is None and (region.findings or bad_loss is not None):
                break
        if region.ranks.group is not None and bad_loss is not None and not region.findings:
            region.report(bad_loss)
    recorded = [finding for finding in region.findings if finding.is_nonfinite]
    return recorded if recorded or bad_loss is None else [bad_loss]


def eval_source(setup: TrainingSetup) -> Batches:
    """Where the batches of evaluation come from."""
    return setup.batches if setup.eval_batches is None else setup.eval_batches


def _eval_batches(setup: TrainingSetup) -> Iterator[Batch]:
    argument = "batches" if setup.eval_batches is None else "eval_batches"
    source = eval_source(setup)
    most = MAX_BATCHES if isinstance(source, Sized) else MAX_UNSIZED
    deadline = time.monotonic() + (MAX_SECONDS if current() is None else math.inf)  # all ranks end alike
    number = 0
    for number, batch in enumerate(epoch(source, argument=argument), start=1):
        yield batch
        if number >= most or time.monotonic() > deadline:
            return
    if number == 0:
        raise ValueError(
            f"{argument} gave no batch to evaluate on: it is empty, or a one-shot iterator that training used up; "
            "pass a list, a DataLoader or a function"
        )


def _evaluate_batch(
    setup: TrainingSetup, form: Arithmetic, batch: Batch, number: int, region: Region
) -> Finding | None:
    __tracebackhide__ = True
    moved = form.batch(batch)
    with explained(form.precision), form.autocast():
        loss = checked_loss(_loss_of(setup, moved), "loss", needs_grad=False)
    value = loss.float().item()
    if math.isfinite(value):
        return None
    word = "NaN" if math.isnan(value) else "Inf"
    evidence = {"tensor": "loss", "value": value, **region.context}
    if is_data_fault(batch, setup.domain):
        return Finding(
            kind="nonfinite-input",
            message=f"NaN or Inf in evaluation batch {number}",
            phase="data",
            evidence=evidence,
            cause="the batch already held it when the loss was called",
            remedy="reject or repair it where the batch is made; assert_finite_batches(loader) finds every such row",
        )
    finding = Finding(
        kind="nonfinite-loss",
        message=f"{word} in the evaluation loss at batch {number}",
        phase="eval",
        evidence=evidence,
    )
    made = region.behind(loss)
    return finding if made is None or region.tracing is None else region.tracing.told(finding, made, region)


def _loss_of(setup: TrainingSetup, batch: Batch) -> object:
    """The loss without gradients, unless it needs some itself: a gradient penalty, the residual of an equation."""
    __tracebackhide__ = True
    try:
        return setup.loss(setup.model, batch)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return setup.loss(setup.model, batch).detach()


def is_data_fault(batch: Batch, domain: object) -> bool:
    """Whether the check finite_data fails with this batch."""
    if nonfinite_tensor(batch) is None:
        return False
    return any(finding.is_nonfinite for finding in survey_batches([batch], domain=domain).findings)
