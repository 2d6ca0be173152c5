"""`assert_handles_nonfinite`: a data pipeline refuses or repairs bad values, and leaves good ones alone."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from pytest_nanstab.batches import trees
from pytest_nanstab.checks import _numbers, _outputs, _rows
from pytest_nanstab.checks._leaves import numeric_leaves
from pytest_nanstab.checks._state import same_random_state
from pytest_nanstab.checks.finite import facts
from pytest_nanstab.findings import Finding, error_from

Policy = Literal["reject", "sanitize"]
Errors = type[BaseException] | tuple[type[BaseException], ...]
_POLICIES = ("reject", "sanitize")
_SATURATED = 0.99  # of the largest number of the output's dtype


def assert_handles_nonfinite(
    pipeline: Any,
    sample: Any,
    *,
    policy: Policy,
    raises: Errors = (ValueError, TypeError, OverflowError),
    corruptions: Any = None,
    match_place: bool = False,
) -> None:
    """Fail unless a pipeline handles every corrupted copy of a good sample as its policy says.

    First the control: the pipeline must accept the sample itself and make finite output of it. Then every corruption of
    it is put in. An *invalid* one (NaN, infinity, a missing value, text that cannot be encoded) must be refused under
    "reject" and repaired under "sanitize": finite output in the form of the clean one, other rows as they were if the
    pipeline treats rows independently, or without the corrupted rows. A value that is *legal but extreme* must be
    refused or lead to finite output; beyond what the output's dtype can hold, saturating counts as accepting it.
    The sample is never changed, random state restored.

    Args:
        pipeline: a callable, or an object with `fit` or `fit_transform` and `transform`. It is copied for every run; an
            unfitted one is tested both in fitting on corrupted data and in transforming it after a clean fit.
        sample: clean data: arrays, tensors, data frames, texts, or containers of these.
        policy: "reject" or "sanitize".
        raises: the exceptions that count as a refusal.
        corruptions: which ones: parts or fnmatch patterns of their names, or `Corruption` objects; None is all.
        match_place: a refusal must also name the corrupted row, column or field.

    Raises:
        NonFiniteError: with kind "accepted-nonfinite": something got through. The evidence has a table of all outcomes.
        StabilityError: with kind "bad-data": the control failed, or the pipeline broke in another way.
        ValueError, TypeError: wrong arguments, or no corruption fits the sample.
    """
    __tracebackhide__ = True
    finding = pipeline_finding(
        pipeline, sample, policy=policy, raises=raises, corruptions=corruptions, match_place=match_place
    )
    if finding is not None:
        raise error_from([finding])


def pipeline_finding(
    pipeline: Any,
    sample: Any,
    *,
    policy: Policy,
    raises: Errors = (ValueError, TypeError, OverflowError),
    corruptions: Any = None,
    match_place: bool = False,
) -> Finding | None:
    """What `assert_handles_nonfinite` would raise."""
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, got {policy!r}")
    refusals = _refusals(raises)
    chosen = _chosen(sample, corruptions)
    source = _source_of(pipeline)
    with same_random_state(), warnings.catch_warnings():
        # What a warning filter makes of a pipeline's warnings is not how it handles the value.
        warnings.simplefilter("ignore")
        outcomes: list[_Outcome] = []
        for way, run in _ways(pipeline, sample):
            trial = _Trial(run, sample, policy, refusals, match_place)
            if trial.control is not None:
                return _control_finding(trial.control, way, source)
            outcomes += [trial.outcome(corruption, way) for corruption in chosen]
    wrong = [outcome for outcome in outcomes if not outcome.ok]
    return _finding(outcomes, wrong, policy, source) if wrong else None


def _refusals(raises: Any) -> tuple[type[BaseException], ...]:
    given = raises if isinstance(raises, tuple) else (raises,)
    if not given or not all(isinstance(item, type) and issubclass(item, BaseException) for item in given):
        raise TypeError(f"raises must be exception classes, got {raises!r}")
    return given


def _chosen(sample: Any, wanted: Any) -> list[Any]:
    from pytest_nanstab.batches.corruption import Corruption, all_corruptions

    items = [wanted] if isinstance(wanted, str) else wanted
    if items is None:
        found = all_corruptions(sample)
        if not found:
            raise ValueError("no corruption fits the sample: it holds no floating numbers, texts or gaps")
        return found
    items = list(items)
    wrong = [item for item in items if not isinstance(item, (str, Corruption))]
    if wrong or not items:
        given = repr(wrong[0]) if wrong else "none"
        raise TypeError(f"corruptions must be names, patterns or Corruption objects, got {given}")
    made = [item for item in items if isinstance(item, Corruption)]
    names = [item for item in items if isinstance(item, str)]
    return made + (_named(all_corruptions(sample), names) if names else [])


def _named(corruptions: list[Any], names: list[str]) -> list[Any]:
    for name in names:
        if not any(_is_named(corruption.name, name) for corruption in corruptions):
            known = ", ".join(dict.fromkeys(corruption.name for corruption in corruptions)) or "none"
            raise ValueError(f"corruptions: {name!r} is the name of none; this sample has {known}")
    return [item for item in corruptions if any(_is_named(item.name, name) for name in names)]


def _is_named(name: str, wanted: str) -> bool:
    return wanted.lower() in name.lower() or fnmatchcase(name.lower(), wanted.lower())


# --- running the pipeline

_Run = Callable[[Any], Any]


def _ways(pipeline: Any, sample: Any) -> Iterator[tuple[str, _Run]]:
    """How data can reach a pipeline: the words for it, "" when there is one way only, and the function that does it."""
    transforms = callable(getattr(pipeline, "transform", None))
    if transforms and (hasattr(pipeline, "fit") or hasattr(pipeline, "fit_transform")):
        if _is_fitted(pipeline):
            yield "", lambda data: _clone(pipeline).transform(data)
            return
        yield "fit", lambda data: _fit_transform(_clone(pipeline), data)
        yield "transform", lambda data: _fitted(_clone(pipeline), copy.deepcopy(sample)).transform(data)
    elif callable(pipeline):
        yield "", lambda data: _clone(pipeline)(data)  # noqa: PLW0108 - a fresh copy for every call
    else:
        kind = type(pipeline).__name__
        raise TypeError(f"pipeline must be callable or have fit and transform, got {kind}")


def _clone(pipeline: Any) -> Any:
    """A fresh copy, so that no run sees what an earlier one learned; what cannot be copied is used as it is."""
    try:
        return copy.deepcopy(pipeline)
    except (TypeError, RuntimeError, NotImplementedError):  # locks, generators, tensors with history
        return pipeline


def _is_fitted(pipeline: Any) -> bool:
    if hasattr(pipeline, "__sklearn_is_fitted__"):
        return bool(pipeline.__sklearn_is_fitted__())
    return any(name.endswith("_") and not name.startswith("_") for name in vars(pipeline))


def _fit_transform(pipeline: Any, data: Any) -> Any:
    if hasattr(pipeline, "fit_transform"):
        return pipeline.fit_transform(data)
    return _fitted(pipeline, data).transform(data)


def _fitted(pipeline: Any, data: Any) -> Any:
    if hasattr(pipeline, "fit"):
        pipeline.fit(data)
    else:
        pipeline.fit_transform(data)
    return pipeline


@dataclass(frozen=True)
class _Outcome:
    """What became of one corruption."""

    name: str
    place: str
    words: str
    ok: bool
    leak: _outputs.Leak | None = None
    error: BaseException | None = None

    @property
    def row(self) -> dict[str, str]:
        return {"corruption": self.name, "place": self.place, "outcome": self.words}


class _Trial:
    """One way of running a pipeline: the clean run, and how corrupted runs compare with it."""

    def __init__(
        self,
        run: _Run,
        sample: Any,
        policy: Policy,
        refusals: tuple[type[BaseException], ...],
        match_place: bool,
    ) -> None:
        self.run, self.sample, self.policy = run, sample, policy
        self.refusals, self.match_place = refusals, match_place
        self.clean: Any = None
        self.control = self._controlled()
        self.forms = {} if self.control else _outputs.forms(self.clean)
        self.sample_forms = _outputs.forms(sample)
        self.rows = _rows.count_rows(sample)
        self.largest = None if self.control else _largest_output(self.clean)
        self.clean_overflows = self.largest is not None and _magnitude(sample) > self.largest
        self.independent = not self.control and policy == "sanitize" and self._treats_rows_alone()

    def _controlled(self) -> str | BaseException | None:
        """What is wrong with the clean run; None when nothing is."""
        try:
            self.clean = self._call(copy.deepcopy(self.sample))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            return error
        leak = _outputs.leak(self.clean)
        return None if leak is None else leak.words

    def _call(self, data: Any) -> Any:
        with same_random_state():  # the same draws in every run, or augmentation would look like damage
            return self.run(data)

    def _treats_rows_alone(self) -> bool:
        """Whether clean rows come out the same in another order and in other company."""
        if self.rows is None or self.rows < 2 or _rows.count_rows(self.clean) != self.rows:
            return False
        orders = (range(self.rows - 1, -1, -1), range(self.rows - 1), range((self.rows + 1) // 2))
        try:
            return all(
                _rows.same_rows(self._call(_rows.take(self.sample, rows)), _rows.take(self.clean, rows))
                for rows in orders
            )
        except Exception:  # noqa: BLE001 - a pipeline that cannot take fewer rows does not treat them alone
            return False

    def outcome(self, corruption: Any, way: str) -> _Outcome:
        """Run one corrupted sample and judge what happens."""
        name = f"{corruption.name} ({way})" if way else corruption.name
        invalid = corruption.invalid
        try:
            output = self._call(copy.deepcopy(corruption.value))
        except self.refusals as error:
            words, ok = self._refused(corruption, error, invalid)
            return _Outcome(name, corruption.place, words, ok, error=error)
        except Exception as error:  # noqa: BLE001 - an exception that is no refusal is a finding
            return _Outcome(name, corruption.place, f"raised {type(error).__name__}", False, error=error)
        leak = _outputs.leak(output)
        if leak is not None:
            return _Outcome(name, corruption.place, f"let through: {leak.words}", False, leak)
        words, ok = self._finite(output, corruption)
        return _Outcome(name, corruption.place, words, ok)

    def _unholdable(self, value: Any) -> bool:
        """Whether a finite magnitude went in that the dtype of the output cannot hold."""
        return self.largest is not None and not self.clean_overflows and _magnitude(value) > self.largest

    def _refused(self, corruption: Any, error: BaseException, invalid: bool) -> tuple[str, bool]:
        if invalid and self.policy == "sanitize":
            return f"refused ({type(error).__name__}) instead of repaired", False
        if self.match_place and invalid and not names_place(str(error), corruption):
            return "refused without naming the place", False
        return "refused", True

    def _finite(self, output: Any, corruption: Any) -> tuple[str, bool]:
        beyond = self._unholdable(corruption.value)
        if not corruption.invalid and not beyond:
            return "finite", True
        if self.policy == "reject":
            # A logarithm may well bring 1e39 into float32; nan_to_num and clip hide it at the end of the range.
            hidden = corruption.invalid or _magnitude(output) >= _SATURATED * (self.largest or 0.0)
            return ("accepted: finite output", False) if hidden else ("finite", True)
        problem = self._changed(output, corruption)
        return ("repaired", True) if problem is None else (problem, False)

    def _changed(self, output: Any, corruption: Any) -> str | None:
        """How a repaired output differs from the clean one where it should not."""
        lost = self._lost_rows(output, corruption)
        loose = _holds_text(corruption.value) or _outputs.forms(corruption.value) != self.sample_forms
        problem = self._form_problem(_outputs.forms(output), lost, loose)
        if problem is not None or not self.independent or not corruption.rows:
            return problem
        kept = [row for row in range(self.rows or 0) if row not in corruption.rows]
        if not kept or (lost and lost != len(corruption.rows)):
            return None
        remaining = output if lost else _rows.take(output, kept)
        same = _rows.same_rows(remaining, _rows.take(self.clean, kept))
        return None if same else "changed rows that were good"

    def _lost_rows(self, output: Any, corruption: Any) -> int:
        """How many rows a filter took away, if no more than were corrupted."""
        after = _rows.count_rows(output)
        if self.rows is None or after is None or _rows.count_rows(self.clean) != self.rows:
            return 0
        return self.rows - after if 0 < self.rows - after <= len(corruption.rows) else 0

    def _form_problem(self, forms: dict[str, _outputs.Form], lost: int, loose: bool) -> str | None:
        """Where shape or dtype differ; `loose` lets texts change their length and integers with a gap be floats."""
        if set(forms) != set(self.forms):
            return "changed the structure of the output"
        for path, form in forms.items():
            before = self.forms[path]
            shape = (before.shape[0] - lost, *before.shape[1:]) if lost else before.shape
            same = form.shape[:1] == shape[:1] and len(form.shape) == len(shape) if loose else form.shape == shape
            numbers = loose and form.is_number and before.is_number
            if not same or not (form.dtype == before.dtype or numbers):
                return f"changed the output from {before} to {form}"
        return None


def _largest_output(output: Any) -> float | None:
    """The largest number the floating leaves of an output can hold; None without any."""
    limits = []
    for leaf in numeric_leaves(output, name="output"):
        if not _numbers.is_float(leaf) or leaf.dtype in ("float", "object"):
            continue
        values = leaf.values
        info = np.finfo(values.dtype) if isinstance(values, np.ndarray) else _torch_finfo(values)
        limits.append(float(info.max))
    return min(limits, default=None)


def _torch_finfo(values: Any) -> Any:
    import torch

    return torch.finfo(values.dtype)


def _magnitude(sample: Any) -> float:
    """The largest finite magnitude in a sample."""
    largest = 0.0
    for leaf in numeric_leaves(sample):
        seen = _numbers.extent(leaf.values) if _numbers.is_float(leaf) else None
        if seen is not None and np.isfinite(seen.largest):
            largest = max(largest, seen.largest)
    return largest


def _holds_text(sample: Any) -> bool:
    return any(isinstance(leaf, str) for _, leaf in trees.leaves(sample))


def names_place(message: str, corruption: Any) -> bool:
    """Whether a message names a row (counted from 0 or 1), column or field of a corruption; one value has no place."""
    if not corruption.place and not corruption.rows:
        return True
    names = {name for pair in re.findall(r"'([^']+)'|\"([^\"]+)\"", corruption.place) for name in pair if name}
    numbers = {str(row + offset) for row in corruption.rows for offset in (0, 1)}
    numbers |= {number for text in re.findall(r"column \d+|\[[\d, ]+\]", corruption.place) for number in _digits(text)}
    for leaf in numeric_leaves(corruption.value, missing="all"):
        damage = _numbers.damage_of(leaf)
        if damage is not None:
            names |= {leaf.field} - {""}
            numbers |= set(map(str, damage.columns))
    return any(name in message for name in names) or bool(numbers & set(_digits(message)))


def _digits(text: str) -> list[str]:
    return re.findall(r"\d+", text)


# --- the finding


def _source_of(pipeline: Any) -> str | None:
    """The line that defines the pipeline where it is the user's, else the line of the call."""
    from pytest_nanstab.attribution.source import is_user_file, place, user_line

    code = getattr(inspect.unwrap(pipeline) if callable(pipeline) else None, "__code__", None)
    if code is not None and is_user_file(code.co_filename):
        return place(code.co_filename, code.co_firstlineno)
    return user_line()


def _control_finding(problem: str | BaseException, way: str, source: str | None) -> Finding:
    raised = isinstance(problem, BaseException)
    what = f"{type(problem).__name__}: {problem}" if raised else f"{problem} in the output"
    return Finding(
        kind="bad-data",
        message=f"the control failed: it {'refuses good data' if raised else 'breaks good data'}",
        phase="data",
        source=source,
        evidence={"control": f"{what}{f' ({way})' if way else ''}"},
        cause="the pipeline does this with the sample as it was given, before anything is corrupted",
        remedy="give a sample the pipeline handles, or fix the pipeline",
    )


def _finding(outcomes: list[_Outcome], wrong: list[_Outcome], policy: Policy, source: str | None) -> Finding:
    first = next((outcome for outcome in wrong if outcome.leak is not None), wrong[0])
    through = [outcome for outcome in wrong if outcome.error is None]
    word = {"reject": "refused", "sanitize": "repaired"}[policy]
    where = f" in {first.place}" if first.place else ""
    return Finding(
        kind="accepted-nonfinite" if through else "bad-data",
        message=f"{len(wrong)} of {len(outcomes)} bad values not {word}: {first.name}{where}",
        phase="data",
        source=source,
        evidence={
            "policy": policy,
            **_leaked(first),
            **_error(first),
            "table": [outcome.row for outcome in (*wrong, *(item for item in outcomes if item.ok))],
        },
        cause=f"{first.name}{where}: {first.words}",
        remedy=_REMEDIES[policy],
    )


_REMEDIES: dict[Policy, str] = {
    "reject": "raise ValueError naming row and column where a value is not finite",
    "sanitize": "impute, clip or drop what is not finite before any statistics are taken",
}


def _leaked(outcome: _Outcome) -> dict[str, Any]:
    leak = outcome.leak
    if leak is None or leak.leaf is None or leak.damage is None:
        return {}
    return {
        "tensor": leak.leaf.path,
        **facts(leak.leaf, leak.damage),
        "rows": leak.damage.rows,
        "columns": leak.damage.columns,
        **({"field": leak.leaf.field} if leak.leaf.field else {}),
    }


def _error(outcome: _Outcome) -> dict[str, str]:
    if outcome.error is None:
        return {}
    text = str(outcome.error).splitlines()
    return {"error": f"{type(outcome.error).__name__}: {text[0][:200] if text else ''}"}
