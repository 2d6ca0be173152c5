"""`assert_finite_batches`: every batch of a loader, every field, to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pytest_nanstab import progress
from pytest_nanstab.checks._columns_splits import split_notes
from pytest_nanstab.checks._walk import Survey, Walker
from pytest_nanstab.checks._walk_clock import WalkClock
from pytest_nanstab.checks._walk_domain import specs_of
from pytest_nanstab.findings import Finding, error_from

_ENDLESS = 10_000  # batches, after which what has no length is taken to have no end either
__all__ = ["Survey", "assert_finite_batches", "notes_on_splits", "survey_batches", "walk"]


def assert_finite_batches(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    domain: Any = None,
    max_batches: int | None = None,
    max_faults: int = 20,
) -> None:
    """Fail when any batch holds NaN, Inf or a value outside its declared domain; all faults are found in one pass.

    Args:
        batches: a loader, another iterable, or a callable that returns one. It is walked to its end; a long walk tells
            its progress: behind pytest's line on a terminal, else after 5 s on stderr.
        domain: `TensorSpec`s shaped like a batch. They give legal ranges and may allow NaN or infinities; the fields
            they leave out must be finite.
        max_batches: how many batches to walk; None walks all of them, and is refused for what has no `len` and no
            end within 10,000 batches.
        max_faults: how many faults to describe; the others are only counted.

    A tensor or array whose dtype changes between batches is a fault too. Without a domain a field with "mask" in its
    name may consist of 0 and -inf, as additive attention masks do. Constant and nearly constant columns, object arrays
    and negative labels are noted where something else fails.

    Raises:
        NonFiniteError: a fault is NaN or Inf. Findings of kind "bad-data" say batch, field, rows and columns.
        StabilityError: values are only outside the domain, or a dtype changes.
        ValueError: there was no batch, or no number in any; or all were fine and there was no end to them.
        TypeError: `batches` cannot be walked.
    """
    __tracebackhide__ = True
    survey = survey_batches(batches, domain=domain, max_batches=max_batches, max_faults=max_faults)
    if survey.findings:
        raise error_from(survey.findings)


def walk(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    domain: Any = None,
    max_batches: int | None = None,
    max_faults: int = 20,
    seconds: float | None = 60.0,
) -> list[Finding]:
    """The faults `assert_finite_batches` would raise, from as many batches as fit into `seconds`."""
    return survey_batches(
        batches, domain=domain, max_batches=max_batches, max_faults=max_faults, seconds=seconds
    ).findings


def survey_batches(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    domain: Any = None,
    max_batches: int | None = None,
    max_faults: int = 20,
    seconds: float | None = None,
    statistics: bool = False,
    name: str = "assert_finite_batches",
    clock: Callable[[], float] = time.monotonic,
) -> Survey:
    """Walk `batches` and tell all that was seen; `ValueError` when nothing could be checked.

    Args:
        batches: as `assert_finite_batches` takes them, and so the next three.
        domain: likewise.
        max_batches: likewise.
        max_faults: likewise.
        seconds: no further batch is asked for after so many.
        statistics: gather those of the columns, which `notes_on_splits` compares.
        name: what lines of progress begin with.
        clock: gives seconds.
    """
    _check_count("max_faults", max_faults)
    if max_batches is not None:
        _check_count("max_batches", max_batches)
    walker = Walker(specs_of(domain), max_faults, statistics=statistics)
    with progress.stage(name.replace(",", ""), "batch {}, faults {}") as tell:
        timer = WalkClock(name, seconds, clock, tell)
        source = _source(batches)
        for number, batch in enumerate(_iterator(source), start=1):
            walker.look(number, batch)
            if timer.over(number, walker.ledger.faults) or number == max_batches:
                return walker.finished(complete=number == _length(source))
            if number == _ENDLESS and seconds is max_batches is None and _length(source) is None:
                return _broken_off(walker)
    return walker.finished(complete=True)


def _broken_off(walker: Walker) -> Survey:
    """What a walk without an end has found so far; that all of it is fine cannot be said."""
    if not walker.ledger.faults:
        raise ValueError(
            f"batches has no len() and no end within {_ENDLESS} batches: say with max_batches=... how many to walk"
        )
    walker.ledger.note("batches", f": walking was broken off after {_ENDLESS}, since they have no len() and no end")
    return walker.finished(complete=False)


def notes_on_splits(batches: Survey, eval_batches: Survey) -> list[str]:
    """What the columns of both splits say about statistics that were fitted on the wrong one.

    Nothing unless both were walked to their ends with `statistics`.
    """
    if not (batches.complete and eval_batches.complete):
        return []
    return list(split_notes(batches.statistics, eval_batches.statistics))


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, got {value!r}")


def _source(batches: Any) -> Any:
    return batches() if callable(batches) and not isinstance(batches, Iterable) else batches


def _iterator(source: Any) -> Iterator[Any]:
    if isinstance(source, (str, bytes, Mapping, Tensor, np.ndarray)):
        kind = type(source).__name__
        raise TypeError(f"batches must be an iterable of batches, got one {kind}; put a single batch into a list")
    try:
        return iter(source)
    except TypeError:
        kind = type(source).__name__
        raise TypeError(f"batches must be an iterable or a callable that returns one, got {kind}") from None


def _length(source: Any) -> int | None:
    """How many batches there are, where the source knows."""
    try:
        return len(source)
    except (TypeError, NotImplementedError):  # an iterator, or a loader of an iterable data set
        return None
