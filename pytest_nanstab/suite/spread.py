"""How far trainings lie apart that differ in nothing that matters: the measured tolerance of a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pytest_nanstab.findings import error_from
from pytest_nanstab.suite.expand import ItemRequest
from pytest_nanstab.suite.shared import trained_apart
from pytest_nanstab.watching.run import Run

SEEDS = 3


def other_runs(request: ItemRequest, first: int) -> tuple[list[Run], Mapping[str, Any]]:
    """Trainings with three seeds and two thread counts, without the one that is recorded; and which those were.

    The thread counts are the current one and 1, or 2 where 1 is the current one.

    Raises:
        NonFiniteError: one of them did not stay finite; its seed is in the evidence.
    """
    __tracebackhide__ = True
    current = torch.get_num_threads()
    threads, seeds = (current, 2 if current == 1 else 1), range(first, first + SEEDS)
    runs = []
    for count in threads:
        with _threads(count):
            runs += [_finite(request, seed) for seed in seeds if (count, seed) != (current, first)]
    return runs, {"seeds": list(seeds), "threads": list(threads)}


def _finite(request: ItemRequest, seed: int) -> Run:
    __tracebackhide__ = True
    training = trained_apart(request, seed)
    if training.stop is not None:
        raise error_from([training.stop])
    return training.run


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
