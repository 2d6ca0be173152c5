"""`assert_handles_nonfinite`: a data pipeline refuses or repairs bad values, and leaves good ones alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from pytest_nanstab.checks._state import same_random_state
from pytest_nanstab.corruptions.catalogue import recipes
from pytest_nanstab.corruptions.model import Corruption, Recipe
from pytest_nanstab.findings import Finding, error_from
from pytest_nanstab.pipelines import splits, telling
from pytest_nanstab.pipelines.judging import Policy, Trial
from pytest_nanstab.pipelines.permissions import Permissions
from pytest_nanstab.pipelines.refusals import Refusals
from pytest_nanstab.pipelines.ways import check_workers, ways_into

Errors = type[BaseException] | tuple[type[BaseException], ...]
_POLICIES = ("reject", "sanitize")


def assert_handles_nonfinite(
    pipeline: Any,
    sample: Any,
    *,
    policy: Policy,
    raises: Errors = (ValueError, TypeError, OverflowError),
    corruptions: Any = None,
    match_place: bool = False,
    allow_nan: bool | str | Iterable[str] = (),
    domain: Any = None,
) -> None:
    """Fail unless a pipeline handles every corrupted copy of a good sample as its policy says.

    First the control: the pipeline must accept the sample itself and make finite output of it. Then every corruption
    of it is put in. An *invalid* one (NaN, infinity, a missing value, bytes or text that cannot be decoded or encoded,
    a number that the dtype of the output cannot hold) must be refused under "reject" and repaired under "sanitize":
    finite output in the form of the clean one, other rows as they were if the pipeline treats rows independently, or
    without the corrupted rows. What is *legal but extreme* (outliers, constant columns, zero under a logarithm, an
    empty batch, a single row, odd characters, ...) must be refused or lead to finite output. After each of them good
    data must still come out right: what a pipeline keeps must not be poisoned, not even by a batch it refused.

    Objects that are fitted, and functions that return a training and a test part, must not take statistics from the
    rows they transform ("leaked-statistics"). The sample is never changed, random state restored.

    Args:
        pipeline: a callable; an object with `fit` or `fit_transform` and `transform`; a Dataset or DataLoader that
            holds the sample, or a callable that makes one, which is read to the end (a loader is read without its
            workers, but for one batch). It is copied for every run, or put back as it was; an unfitted one is tested in
            fitting on corrupted data and in transforming them after a clean fit.
        sample: clean data: arrays, tensors, data frames, images, texts, bytes, or containers of these.
        policy: "reject" or "sanitize".
        raises: the exceptions that count as a refusal.
        corruptions: which: parts or fnmatch patterns of their names, or `Corruption` objects; None is all.
        match_place: a refusal must also name the corrupted row, column or field.
        allow_nan: fields and columns that may carry missing values, by name or fnmatch pattern ("1" is column 1 of an
            array); True for all of them. NaN may come out of these, infinities may not.
        domain: `TensorSpec`s shaped like the sample; those with `allow_nan` are such fields too.

    Raises:
        NonFiniteError: with kind "accepted-nonfinite": something got through. The evidence has a table of all outcomes.
        StabilityError: with kind "bad-data": the control failed, or the pipeline broke in another way; with kind
            "leaked-statistics".
        ValueError, TypeError: wrong arguments, or no corruption fits the sample.
    """
    __tracebackhide__ = True
    findings = pipeline_findings(
        pipeline,
        sample,
        policy=policy,
        raises=raises,
        corruptions=corruptions,
        match_place=match_place,
        allow_nan=allow_nan,
        domain=domain,
    )
    if findings:
        raise error_from(findings)


def pipeline_findings(
    pipeline: Any,
    sample: Any,
    *,
    policy: Policy,
    raises: Errors = (ValueError, TypeError, OverflowError),
    corruptions: Any = None,
    match_place: bool = False,
    allow_nan: bool | str | Iterable[str] = (),
    domain: Any = None,
) -> list[Finding]:
    """What `assert_handles_nonfinite` would raise."""
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, got {policy!r}")
    refusals = Refusals(raises, match_place=match_place)
    source = telling.source_of(pipeline)
    with same_random_state(), warnings.catch_warnings():
        # What a warning filter makes of a pipeline's warnings is not how it handles the value.
        warnings.simplefilter("ignore")
        found_ways, held = ways_into(pipeline, sample)
        chosen = _chosen(held, corruptions)
        trials = []
        for way in found_ways:
            trial = Trial(way, held, policy, refusals, Permissions(held, allow_nan, domain))
            if trial.control is not None:
                return [telling.control_finding(trial.control, way.words, source)]
            trials.append(trial)
        check_workers(pipeline)
        outcomes = [outcome for trial in trials for outcome in trial.outcomes(chosen)]
        found = [] if all(item.ok for item in outcomes) else [telling.finding_of(outcomes, trials, chosen, source)]
        return [*found, *_leaks(pipeline, trials, held)]


def _leaks(pipeline: Any, trials: list[Trial], sample: Any) -> Iterator[Finding]:
    """Statistics of the wrong rows: of fitted objects, and of functions that split."""
    last = trials[-1]
    learned = hasattr(pipeline, "fit") or hasattr(pipeline, "fit_transform")
    if learned:
        transforming = next((trial for trial in trials if not trial.way.fits), last)
        found = splits.in_company(transforming.once, sample)
    else:
        found = splits.between_splits(last.once, sample)
    if found is not None:
        yield telling.leaked_finding(found, pipeline)


# --- which corruptions


def _chosen(sample: Any, wanted: Any) -> list[Recipe]:
    items = [wanted] if isinstance(wanted, str) else wanted
    if items is None:
        found = recipes(sample)
        if not found:
            raise ValueError("no corruption fits the sample: it holds no numbers, texts or gaps, and no rows")
        return found
    items = list(items)
    wrong = [item for item in items if not isinstance(item, (str, Corruption))]
    if wrong or not items:
        given = repr(wrong[0]) if wrong else "none"
        raise TypeError(f"corruptions must be names, patterns or Corruption objects, got {given}")
    made = [_ready(item) for item in items if isinstance(item, Corruption)]
    names = [item for item in items if isinstance(item, str)]
    return made + (_named(recipes(sample), names) if names else [])


def _ready(corruption: Corruption) -> Recipe:
    value = corruption.value
    return Recipe(
        corruption.name, corruption.place, corruption.invalid, lambda: value, corruption.rows, corruption.family
    )


def _named(found: list[Recipe], names: list[str]) -> list[Recipe]:
    for name in names:
        if not any(_is_named(recipe.name, name) for recipe in found):
            known = ", ".join(dict.fromkeys(recipe.name for recipe in found)) or "none"
            raise ValueError(f"corruptions: {name!r} is the name of none; this sample has {known}")
    return [item for item in found if any(_is_named(item.name, name) for name in names)]


def _is_named(name: str, wanted: str) -> bool:
    return wanted.lower() in name.lower() or fnmatchcase(name.lower(), wanted.lower())
