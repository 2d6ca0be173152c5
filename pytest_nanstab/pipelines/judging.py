"""One way of running a pipeline: the clean run, and how corrupted runs compare with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from pytest_nanstab.checks._state import same_random_state
from pytest_nanstab.corruptions import rows as row_sets
from pytest_nanstab.corruptions.catalogue import fresh
from pytest_nanstab.corruptions.model import Corruption, Recipe
from pytest_nanstab.pipelines import aftermath, casts, outputs
from pytest_nanstab.pipelines.forms import Comparison
from pytest_nanstab.pipelines.permissions import Permissions, fields_in
from pytest_nanstab.pipelines.refusals import Refusals
from pytest_nanstab.pipelines.trace import LineTrace
from pytest_nanstab.pipelines.ways import Session, Way

Policy = Literal["reject", "sanitize"]
_ENOUGH = 3  # corruptions of a field without any effect say that it is not looked at
_LEARNED = ("missing", "text", "category", "number text")  # words that a fit takes up as one more of them
_SATURATED = 0.99  # of the largest number of the output's dtype


@dataclass(frozen=True)
class Outcome:
    """What became of one corruption.

    Attributes:
        corruption: name, place and family; its value is not kept.
        way: how the data went in, "" where there is only one way.
        words: "refused", "repaired", "finite", "let through: NaN, row 3, column 0", ...
        ok: whether the policy allows it.
        leak: what came out that is no value.
        error: what was raised.
        same: whether the output is that of the clean run.
    """

    corruption: Corruption
    way: str
    words: str
    ok: bool
    leak: outputs.Leak | None = None
    error: BaseException | None = None
    same: bool = False

    @property
    def name(self) -> str:
        """The name of the corruption, and the way in."""
        return f"{self.corruption.name} ({self.way})" if self.way else self.corruption.name

    @property
    def row(self) -> dict[str, str]:
        """As a row of the table."""
        return {"corruption": self.name, "place": self.corruption.place, "outcome": self.words}


class Trial:
    """One way of running a pipeline, judged corruption by corruption."""

    def __init__(self, way: Way, sample: Any, policy: Policy, refusals: Refusals, permissions: Permissions) -> None:
        self.way, self.sample, self.policy = way, sample, policy
        self.refusals, self.permissions = refusals, permissions
        self.clean: Any = None
        self.later: Any = None
        self.kept: set[str] = set()
        self.control = self._controlled()
        if self.control is None:
            self._learn()

    def _learn(self) -> None:
        self.rows = row_sets.count_rows(self.sample)
        self.comparison = Comparison(self.sample, self.clean)
        self.binary = outputs.holds_binary(self.clean)
        self.largest = outputs.largest_number(self.clean)
        self.clean_overflows = self.largest is not None and outputs.magnitude(self.sample) > self.largest
        # What is fitted on other data may come out otherwise in every row, and as wide as it has learned to be.
        self.independent = self.policy == "sanitize" and not self.way.fits and self._treats_rows_alone()
        self.repeats = self._repeats()

    def _controlled(self) -> str | BaseException | None:
        """What is wrong with the clean run, and with a second one after it; None when nothing is."""
        try:
            with self.way.session() as session:
                self.clean = fresh(self._call(session.run, self.sample))
                if session.again is not None:
                    self.later = self._call(session.again, self.sample)
                self.kept = aftermath.bad_buffers(session.held())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            return error
        for output in (self.clean, self.later):
            leak = outputs.leak(output, allowed=self.permissions.clean)
            if leak is not None:
                return leak.words
        return None

    @staticmethod
    def _call(run: Any, data: Any) -> Any:
        with same_random_state():  # the same draws in every run, or augmentation would look like damage
            return run(fresh(data))

    def once(self, data: Any) -> Any:
        """The output for one sample, of a pipeline that has seen nothing else."""
        with self.way.session() as session:
            return self._call(session.run, data)

    def traced(self, data: Any, trace: LineTrace) -> None:
        """The same run once more, line by line; what it raises was judged before."""
        with self.way.session() as session:
            copied = fresh(data)
            with suppress(Exception), same_random_state(), trace.recording():
                session.run(copied)

    def _repeats(self) -> bool:
        """Whether a pipeline that has seen nothing gives the same again: else its state is kept out of reach."""
        try:
            return row_sets.same_rows(self.once(self.sample), self.clean)
        except Exception:  # noqa: BLE001 - what fails the second time does not repeat
            return False

    def _treats_rows_alone(self) -> bool:
        """Whether clean rows come out the same in another order and in other company."""
        if self.rows is None or self.rows < 2 or row_sets.count_rows(self.clean) != self.rows:
            return False
        orders = (range(self.rows - 1, -1, -1), range(self.rows - 1), range((self.rows + 1) // 2))
        try:
            return all(
                row_sets.same_rows(self.once(row_sets.take(self.sample, rows)), row_sets.take(self.clean, rows))
                for rows in orders
            )
        except Exception:  # noqa: BLE001 - a pipeline that cannot take fewer rows does not treat them alone
            return False

    # --- the corruptions

    def outcomes(self, recipes: Iterable[Recipe]) -> list[Outcome]:
        """What becomes of every corruption; fields that the pipeline does not look at have nothing to refuse."""
        found = [self.outcome(recipe.made()) for recipe in recipes]
        used = {_field_of(outcome) for outcome in found if not outcome.same}
        tried = Counter(_field_of(outcome) for outcome in found)
        unused = {field for field, count in tried.items() if field and count >= _ENOUGH and field not in used}
        unread = _unread_rows(found)
        return [
            replace(item, words="not used", ok=True)
            if _field_of(item) in unused or (not item.ok and item.same and set(item.corruption.rows) <= unread)
            else item
            for item in found
        ]

    def outcome(self, corruption: Corruption) -> Outcome:
        """Run one corrupted sample and judge what happens."""
        with self.way.session() as session:
            found = self._first(session, corruption)
            if session.again is not None and not (self.way.fits and found.error is not None) and found.ok:
                found = self._poisoned(session, found) or found
        return found

    def _told(self, corruption: Corruption, words: str, ok: bool, **more: Any) -> Outcome:
        light = replace(corruption, value=None)  # a hundred copies of a large sample are not kept
        return Outcome(light, self.way.words, words, ok, **more)

    def _first(self, session: Session, corruption: Corruption) -> Outcome:
        try:
            output = self._call(session.run, corruption.value)
        except Exception as error:  # noqa: BLE001 - refused or not, it is judged
            words, ok = self.refusals.judged(error, corruption, self.policy)
            return self._told(corruption, words, ok, error=error)
        leak = self._leak(output, corruption)
        if leak is not None:
            return self._told(corruption, f"let through: {leak.words}", False, leak=leak)
        words, ok = self._finite(output, corruption)
        return self._told(corruption, words, ok, same=row_sets.same_rows(output, self.clean))

    def _leak(self, output: Any, corruption: Corruption) -> outputs.Leak | None:
        found = outputs.leak(output, allowed=self.permissions.of(corruption), binary=self.binary)
        return found or casts.leak(self.sample, self.clean, output, corruption)

    def _poisoned(self, session: Session, found: Outcome) -> Outcome | None:
        """What is left of the corruption in the pipeline, seen in a clean run after it."""
        assert session.again is not None
        try:
            later = self._call(session.again, self.sample)
        except Exception as error:  # noqa: BLE001 - good data refused: what is kept is broken
            words = f"{found.words}, then good data raised {type(error).__name__}"
            return self._told(found.corruption, words, False, error=error)
        leak = outputs.leak(later, allowed=self.permissions.clean)
        if leak is not None:
            words = f"{found.words}, but kept: good data then give {leak.words}"
            return self._told(found.corruption, words, False, leak=leak)
        buffers = sorted(aftermath.bad_buffers(session.held()) - self.kept)
        if buffers:
            words = f"{found.words}, but kept: {buffers[0]} is not finite"
            return self._told(found.corruption, words, False)
        if found.error is not None and self.repeats and self._came_out_otherwise(session, later):
            return self._told(found.corruption, f"{found.words}, but kept: good data then come out otherwise", False)
        small = found.corruption.invalid and len(found.corruption.rows) <= 1
        if small and aftermath.collapsed(self.later, later):
            words = f"{found.words}, but kept: good data then lose their spread"
            return self._told(found.corruption, words, False)
        return None

    def _came_out_otherwise(self, session: Session, later: Any) -> bool:
        """Whether good data after a refused batch come out neither as they do first nor as they do the second time.

        What draws from a generator of its own may have drawn before it refused.
        """
        if aftermath.holds_generator(session.held()):
            return False
        return not any(row_sets.same_rows(later, expected) for expected in (self.clean, self.later))

    def _finite(self, output: Any, corruption: Corruption) -> tuple[str, bool]:
        if self.permissions.allows(corruption):
            return "finite, missing values allowed", True
        beyond = self._unholdable(corruption.value)
        if not corruption.invalid and not beyond:
            return self._legal(output, corruption)
        if self.policy == "reject":
            # A logarithm may well bring 1e39 into float32; nan_to_num and clip hide it at the end of the range.
            hidden = corruption.invalid or outputs.magnitude(output) >= _SATURATED * (self.largest or 0.0)
            return ("accepted: finite output", False) if hidden else ("finite", True)
        learned = self.way.fits and corruption.family in _LEARNED
        problem = self.comparison.changed(output, corruption, independent=self.independent, learned=learned)
        return ("repaired", True) if problem is None else (problem, False)

    def _legal(self, output: Any, corruption: Corruption) -> tuple[str, bool]:
        before, after = row_sets.count_rows(self.clean), row_sets.count_rows(output)
        if corruption.family == "index" and None not in (before, after) and after > before:  # type: ignore[operator]
            return f"made {after} rows of {before}", False
        if corruption.family == "number text" and casts.holds_text(self.clean, output, corruption):
            return f"let through: {corruption.name} among numbers", False
        return casts.rounding(output, corruption) or "finite", True

    def _unholdable(self, value: Any) -> bool:
        """Whether a finite magnitude went in that the dtype of the output cannot hold."""
        return self.largest is not None and not self.clean_overflows and outputs.magnitude(value) > self.largest


def _field_of(outcome: Outcome) -> str:
    """The one field or column that a corruption lies in, the same in every record of a list; "" for several."""
    names = fields_in(outcome.corruption.place)
    return re.sub(r"(^|\.)\d+\.", r"\1#.", names[0]) if len(names) == 1 else ""


def _unread_rows(outcomes: Iterable[Outcome]) -> set[int]:
    """Rows that come out as before, and without an objection, whatever is done to one of them."""
    alone = [outcome for outcome in outcomes if len(outcome.corruption.rows) == 1]
    tried = Counter(outcome.corruption.rows[0] for outcome in alone)
    read = {outcome.corruption.rows[0] for outcome in alone if not outcome.same}
    return {row for row, count in tried.items() if count >= _ENOUGH and row not in read}
