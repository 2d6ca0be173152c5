"""How data can reach a pipeline: called, fitted, transformed after a fit, fed in parts, or held by a data set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from pytest_nanstab.checks._leaves import attributes_of
from pytest_nanstab.checks._state import same_random_state
from pytest_nanstab.pipelines.isolation import Kept, clone, is_function
from pytest_nanstab.pipelines.sources import Holder, is_source, read


@dataclass(frozen=True)
class Session:
    """A pipeline in use, as it was before anything was put in.

    Attributes:
        run: puts data in; the output, data sets and iterators read to the end.
        again: how good data goes in afterwards; None where nothing can be kept from one run to the next.
        held: the objects whose state may have changed, as they are now.
    """

    run: Callable[[Any], Any]
    again: Callable[[Any], Any] | None
    held: Callable[[], list[Any]]


@dataclass(frozen=True)
class Way:
    """One way in, with its name, "" where there is only one."""

    words: str
    session: Callable[[], AbstractContextManager[Session]]

    @property
    def fits(self) -> bool:
        """Whether a run replaces what was learned."""
        return self.words == "fit"


def ways_into(pipeline: Any, sample: Any) -> tuple[list[Way], Any]:
    """The ways into a pipeline, and the sample as it takes it: a data set may keep that in another form.

    Raises:
        TypeError: it is no pipeline, or a data set that does not hold the sample.
    """
    fits = hasattr(pipeline, "fit") or hasattr(pipeline, "fit_transform")
    if fits and callable(getattr(pipeline, "transform", None)):
        return _of_estimator(pipeline, sample), sample
    if is_source(pipeline):
        holder = Holder(pipeline, sample)
        return [Way("", lambda: _holding(holder))], holder.sample
    if callable(pipeline):
        kept = Kept(pipeline)
        return [Way("", lambda: _calling(pipeline, kept))], sample
    kind = type(pipeline).__name__
    raise TypeError(f"pipeline must be callable, a data set, or have fit and transform, got {kind}")


def check_workers(pipeline: Any) -> None:
    """Read a loader with the worker processes it asks for, once: what cannot cross a process fails here."""
    if isinstance(pipeline, DataLoader) and pipeline.num_workers:
        with same_random_state():
            for _batch in pipeline:
                break


# --- callables and data sets


@contextmanager
def _calling(pipeline: Any, kept: Kept) -> Iterator[Session]:
    """A copy, or a function itself, with all that it shares with others put back afterwards."""
    with kept.restored():
        function = is_function(pipeline)
        subject = pipeline if function else clone(pipeline)

        def run(data: Any) -> Any:
            return read(subject(data))

        if function:
            yield Session(run, run if kept.anything else None, kept.held)
        else:
            yield Session(run, run, partial(_with_parts, subject))


def _with_parts(subject: Any) -> list[Any]:
    return [subject, *attributes_of(subject).values()]


@contextmanager
def _holding(holder: Holder) -> Iterator[Session]:
    yield Session(lambda data: read(holder.holding(data)), None, list)


# --- estimators


def _of_estimator(pipeline: Any, sample: Any) -> list[Way]:
    if is_fitted(pipeline, sample):
        return [Way("", lambda: _transforming(clone(pipeline)))]
    found = [
        Way("fit", lambda: _fitting(clone(pipeline))),
        Way("transform", lambda: _transforming(fitted(clone(pipeline), copy.deepcopy(sample)))),
    ]
    if callable(getattr(pipeline, "partial_fit", None)):
        found.append(Way("partial_fit", lambda: _in_parts(fitted(clone(pipeline), copy.deepcopy(sample)))))
    return found


@contextmanager
def _fitting(subject: Any) -> Iterator[Session]:
    yield Session(
        lambda data: read(_fit_transform(subject, data)),
        lambda data: read(subject.transform(data)),
        partial(_with_parts, subject),
    )


@contextmanager
def _transforming(subject: Any) -> Iterator[Session]:
    def run(data: Any) -> Any:
        return read(subject.transform(data))

    yield Session(run, run, partial(_with_parts, subject))


@contextmanager
def _in_parts(subject: Any) -> Iterator[Session]:
    def run(data: Any) -> Any:
        subject.partial_fit(copy.deepcopy(data))
        return read(subject.transform(data))

    yield Session(run, lambda data: read(subject.transform(data)), partial(_with_parts, subject))


def is_fitted(pipeline: Any, sample: Any) -> bool:
    """By scikit-learn's convention, an attribute that ends in an underscore, and whether it transforms the sample.

    A Pipeline whose last step learns nothing says that it is fitted when it is not.
    """
    if hasattr(pipeline, "__sklearn_is_fitted__"):
        says_so = bool(pipeline.__sklearn_is_fitted__())
    else:
        learned = any(name.endswith("_") and not name.startswith("_") for name in attributes_of(pipeline))
        says_so = learned or not hasattr(pipeline, "get_params")
    if not says_so:
        return False
    try:
        with same_random_state():
            clone(pipeline).transform(copy.deepcopy(sample))
    except Exception:  # noqa: BLE001 - whatever an object says that has learned nothing yet
        return False
    return True


def _fit_transform(pipeline: Any, data: Any) -> Any:
    if hasattr(pipeline, "fit_transform"):
        return pipeline.fit_transform(data)
    return fitted(pipeline, data).transform(data)


def fitted(pipeline: Any, data: Any) -> Any:
    """The pipeline, fitted to `data`."""
    if hasattr(pipeline, "fit"):
        pipeline.fit(data)
    else:
        pipeline.fit_transform(data)
    return pipeline
