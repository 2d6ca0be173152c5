"""Which line made a batch bad: setup and batches once more, with the operations behind the bad batch traced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Tensor

from pytest_nanstab.attribution.account import Known, retold
from pytest_nanstab.attribution.origin import origin_of
from pytest_nanstab.attribution.tracing import LocalTrace
from pytest_nanstab.findings import Finding
from pytest_nanstab.suite.batching import epoch
from pytest_nanstab.suite.evaluate import eval_source
from pytest_nanstab.suite.expand import ItemRequest
from pytest_nanstab.suite.state import seeded
from pytest_nanstab.watching import measure
from pytest_nanstab.watching.names import Names

_PATIENCE = 5.0  # seconds, for coming to the bad batch once more


def explained(request: ItemRequest, seed: int, finding: Finding) -> Finding:
    """A finding about a batch with the operation that made its values bad, where torch computed them."""
    names = Names()
    trace = LocalTrace(names)
    try:
        with seeded(seed):
            with trace:
                setup = request.make_setup()
                on_evaluation = finding.evidence.get("split") == "eval_batches"
                walk = epoch(eval_source(setup) if on_evaluation else setup.batches)
            batch = _batch(trace, walk, finding)
        made = None if batch is None else trace.behind(_bad_parts(batch, finding))
        if made is None or trace.failed is not None:
            return finding
        return _told(finding, retold(replace(finding, kind="nonfinite-input"), origin_of(made), Known(names)))
    finally:
        trace.forget()


def _batch(trace: LocalTrace, walk: Iterator[Any], finding: Finding) -> Any:
    """The bad batch, made with tracing on; those before it are only passed by."""
    deadline = time.monotonic() + _PATIENCE
    for _ in islice(walk, finding.evidence["batch"] - 1):
        if time.monotonic() > deadline:
            return None
    with trace:
        return next(walk, None)


def _bad_parts(batch: Any, finding: Finding) -> list[Tensor]:
    """The bad tensors of the field, or of the batch."""
    found = [(path, t) for path, t in measure.tensors_in(batch) if (seen := measure.extent(t)) and not seen.finite]
    field = finding.evidence.get("field")
    named = [tensor for path, tensor in found if path.replace("[", ".").replace("]", "").lstrip(".") == field]
    return named or [tensor for _, tensor in found]


def _told(finding: Finding, told: Finding) -> Finding:
    """What the walk says of the batch stays; what its operation says comes to it."""
    if told.op is None:
        return finding
    evidence = {**told.evidence, **{key: value for key, value in finding.evidence.items() if key != "shape"}}
    return replace(told, kind=finding.kind, step=None, evidence=evidence)
