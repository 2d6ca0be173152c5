"""The findings about a pipeline: what got through, where, on which line, why, and what to do."""

from __future__ import annotations

import inspect
import linecache
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pytest_nanstab.attribution.source import is_user_file, shown, spot_of_error, user_spot
from pytest_nanstab.checks.finite import facts
from pytest_nanstab.corruptions.model import Family, Recipe
from pytest_nanstab.findings import Finding
from pytest_nanstab.pipelines import culprit
from pytest_nanstab.pipelines.judging import Outcome, Policy, Trial
from pytest_nanstab.pipelines.permissions import fields_in
from pytest_nanstab.pipelines.splits import LeakedStatistics
from pytest_nanstab.pipelines.trace import LineTrace

Spot = tuple[str, int]
_NAMED = 1  # corruptions, in a row of the table that stands for many
_FITS = re.compile(r"\.fit(_transform)?\(|\.partial_fit\(")
_STATISTICS = re.compile(r"\b(mean|std|var|min|max|median|quantile|percentile|amin|amax|nanmean|nanstd|norm|sum)\b\(")


def source_of(pipeline: Any) -> Spot | None:
    """The line that defines the pipeline where it is the user's, else the line of the call."""
    code = _code_of(pipeline)
    if code is not None and is_user_file(code.co_filename):
        return code.co_filename, code.co_firstlineno
    return user_spot()


def _code_of(pipeline: Any) -> Any:
    for name in ("__code__", "transform", "__call__"):
        part = getattr(inspect.unwrap(pipeline) if callable(pipeline) else pipeline, name, None)
        code = (
            part if name == "__code__" else getattr(inspect.unwrap(part) if callable(part) else None, "__code__", None)
        )
        if code is not None and is_user_file(code.co_filename):
            return code
    return None


# --- the control


def control_finding(problem: str | BaseException, way: str, source: Spot | None) -> Finding:
    """Good data were refused, or broken."""
    raised = isinstance(problem, BaseException)
    what = f"{type(problem).__name__}: {problem}" if raised else f"{problem} in the output"
    spot = spot_of_error(problem) if isinstance(problem, BaseException) else None
    return Finding(
        kind="bad-data",
        message=f"the control failed: it {'refuses good data' if raised else 'breaks good data'}",
        phase="data",
        source=shown(spot or source),
        evidence={"control": f"{what}{f' ({way})' if way else ''}"},
        cause="the pipeline does this with the sample as it was given, before anything is corrupted",
        remedy="give a sample the pipeline handles, or fix the pipeline",
    )


# --- what got through


def finding_of(
    outcomes: Sequence[Outcome], trials: Sequence[Trial], recipes: Iterable[Recipe], source: Spot | None
) -> Finding:
    """The finding for all outcomes that the policy does not allow, told by the plainest of them."""
    wrong = [outcome for outcome in outcomes if not outcome.ok]
    policy = trials[0].policy
    first = _plainest(wrong)
    trial = next(trial for trial in trials if trial.way.words == first.way)
    line, stage = _culprit(first, trial, recipes)
    where = f" in {first.corruption.place}" if first.corruption.place else ""
    through = any(outcome.error is None for outcome in wrong)
    return Finding(
        kind="accepted-nonfinite" if through else "bad-data",
        message=f"{len(wrong)} of {len(outcomes)} corruptions not {_word(wrong, policy)}: {first.name}{where}",
        phase="data",
        source=shown(line or source),
        evidence={
            "policy": policy,
            "tried": _counted(outcomes),
            **({"stage": stage} if stage else {}),
            **_leaked(first),
            **_error(first),
            "table": table(outcomes),
            "outcomes": [outcome.row for outcome in (*wrong, *(item for item in outcomes if item.ok))],
        },
        cause=f"{first.name}{where}: {first.words}",
        remedy=_remedy(first, policy),
    )


def _plainest(wrong: Sequence[Outcome]) -> Outcome:
    """What came out before what was raised, what is no value before what is extreme."""
    return min(
        wrong, key=lambda outcome: (outcome.leak is None, outcome.error is not None, not outcome.corruption.invalid)
    )


def _word(wrong: Sequence[Outcome], policy: Policy) -> str:
    if any(outcome.corruption.invalid for outcome in wrong):
        return {"reject": "refused", "sanitize": "repaired"}[policy]
    return "handled"


def _counted(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(_short(outcome) for outcome in outcomes)
    return f"{len(outcomes)}: " + ", ".join(f"{count} {words}" for words, count in counts.most_common())


def _short(outcome: Outcome) -> str:
    """An outcome without its place: "let through" for "let through: NaN, row 3"."""
    if "but kept" in outcome.words:
        return "kept"
    return re.split(r"[:,]| \(| from ", outcome.words, maxsplit=1)[0]


def table(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """One row per corruption and outcome that is wrong, one row per outcome that is right."""
    rows: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda item: item.ok):
        rows.setdefault(("" if outcome.ok else outcome.corruption.name, _short(outcome)), []).append(outcome)
    ways = {outcome.way for outcome in outcomes}
    return [_row(group, name, ways) for (name, _), group in rows.items()]


def _row(group: Sequence[Outcome], name: str, ways: set[str]) -> dict[str, object]:
    if name:
        through = {outcome.way for outcome in group}
        suffix = f" ({', '.join(sorted(through))})" if through < ways else ""
        return {"corruption": name + suffix, "tried": len(group), "outcome": group[0].words}
    names = list(dict.fromkeys(outcome.corruption.name.partition(" (")[0] for outcome in group))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return {"corruption": ", ".join(names[:_NAMED]) + more, "tried": len(group), "outcome": _short(group[0])}


def _leaked(outcome: Outcome) -> dict[str, Any]:
    leak = outcome.leak
    if leak is None or leak.leaf is None or leak.damage is None:
        return {}
    return {
        "tensor": leak.leaf.path,
        **facts(leak.leaf, leak.damage),
        "rows": leak.damage.rows,
        "columns": leak.damage.columns,
        **leak.damage.unlisted,
        **({"field": leak.leaf.field} if leak.leaf.field else {}),
    }


def _error(outcome: Outcome) -> dict[str, str]:
    if outcome.error is None:
        return {}
    text = str(outcome.error).splitlines()
    return {"error": f"{type(outcome.error).__name__}: {text[0][:200] if text else ''}"}


# --- whose line


def _culprit(outcome: Outcome, trial: Trial, recipes: Iterable[Recipe]) -> tuple[Spot | None, str | None]:
    """(the user's line, the library's object) that let a corruption through, from one more run of it."""
    if outcome.error is not None:
        return spot_of_error(outcome.error), None
    wanted = (outcome.corruption.name, outcome.corruption.place)
    recipe = next((item for item in recipes if (item.name, item.place) == wanted), None)
    if recipe is None:
        return None, None
    fields = fields_in(outcome.corruption.place)
    trace = LineTrace(culprit.badness_for(outcome.corruption, outcome.leak), fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial.traced(recipe.made().value, trace)
    stage = culprit.stage_of(trace)
    line = culprit.line_of(trace, outcome.corruption, trial.policy, outcome.leak)
    if "kept" in outcome.words:
        line = culprit.keeping_line(trace) or line
    return line, stage


# --- remedies

_BY_POLICY: dict[Policy, str] = {
    "reject": "raise ValueError naming row and column where a value is not finite",
    "sanitize": "impute, clip or drop what is not finite before any statistics are taken",
}
_BY_FAMILY: dict[Family, str] = {
    "constant": "divide by the spread only where there is one (np.where(std > 0, std, 1)), or refuse constant columns",
    "sign": "clamp before log, sqrt and division (np.log(np.maximum(x, eps)), log1p), or refuse such values",
    "magnitude": "clip, or compute squares and sums in float64, or refuse what the output's dtype cannot hold",
    "integer": "compare with np.iinfo(dtype) before the cast, or keep the wider dtype",
    "number text": "pd.to_numeric(column, errors='raise') where the table is read; check after converting, not before",
    "rows": "guard statistics of no row, and the standard deviation of one row (ddof=1), or refuse such a batch",
    "index": "align by position: reset_index(drop=True) on both sides, or work on .to_numpy()",
    "length": "divide by lengths.clamp(min=1), reduce only over what is there, or refuse empty sequences",
    "image": "bound the divisor (np.maximum(scale, eps)), or refuse images outside the expected range",
    "category": "decide what an unknown category becomes (handle_unknown), or refuse it with ValueError",
}
_TEXT: dict[Policy, str] = {
    "reject": 'decode and encode strictly (errors="strict") where text comes in, and let the error out',
    "sanitize": 'decode with errors="replace", or drop what cannot be encoded; an empty text needs a token of its own',
}
_KEPT = "check a batch before any statistics are updated with it"


def _remedy(outcome: Outcome, policy: Policy) -> str:
    family = outcome.corruption.family
    if "kept" in outcome.words:
        return _KEPT
    if family == "text":
        return _TEXT[policy]
    return _BY_FAMILY.get(family, _BY_POLICY[policy])


# --- leaked statistics

_CAUSES = {
    "company": "the transform takes its statistics from the rows it is given, not from those it was fitted on",
    "own": "the test part is scaled by statistics of its own: the same value means something else than in training",
    "before": "statistics were taken before the split, or of both parts: the training data know the test data",
}


def leaked_finding(leak: LeakedStatistics, pipeline: Any) -> Finding:
    """Statistics of rows that a transform must not look at."""
    return Finding(
        kind="leaked-statistics",
        message=f"leaked statistics: {leak.words}",
        phase="data",
        source=shown(_statistics_line(pipeline, last=leak.how == "own")),
        evidence={"seen": leak.how_seen},
        cause=_CAUSES[leak.how],
        remedy="fit on the training rows alone, and transform both parts with what was fitted",
    )


def _statistics_line(pipeline: Any, *, last: bool) -> Spot | None:
    """The line that fits or takes statistics: the first one, or of a second fit the last one; else the definition."""
    code = _code_of(pipeline)
    if code is None:
        return user_spot()
    first = code.co_firstlineno
    lines = {line for _, _, line in code.co_lines() if line is not None} | {first}
    for pattern in (_FITS, _STATISTICS):
        found = [line for line in sorted(lines) if pattern.search(linecache.getline(code.co_filename, line))]
        if found:
            return code.co_filename, found[-1 if last else 0]
    asking = [
        line for line in sorted(lines) if _asks_for_statistics(pipeline, linecache.getline(code.co_filename, line))
    ]
    return code.co_filename, asking[0] if asking else first


def _asks_for_statistics(pipeline: Any, line: str) -> bool:
    """Whether a line calls a method of the object that takes statistics."""
    for name in re.findall(r"self\.(\w+)\(", line):
        code = getattr(getattr(type(pipeline), name, None), "__code__", None)
        if code is not None and is_user_file(code.co_filename):
            numbers = {number for _, _, number in code.co_lines() if number is not None}
            if any(_STATISTICS.search(linecache.getline(code.co_filename, number)) for number in numbers):
                return True
    return False
