"""Whether a repaired output is the clean one but for the corrupted rows: structure, shape, dtype, good rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_nanstab.batches import trees
from pytest_nanstab.corruptions import rows as row_sets
from pytest_nanstab.corruptions.model import Corruption
from pytest_nanstab.pipelines import outputs


class Comparison:
    """The clean run, for others to be compared with."""

    def __init__(self, sample: Any, clean: Any) -> None:
        self.clean = clean
        self.forms = outputs.forms(clean)
        self.sample_forms = outputs.forms(sample)
        self.rows = row_sets.count_rows(sample)
        self.clean_rows = row_sets.count_rows(clean)

    def changed(self, output: Any, corruption: Corruption, *, independent: bool, learned: bool = False) -> str | None:
        """How a repaired output differs from the clean one where it should not; None where it does not.

        Args:
            output: of the corrupted sample.
            corruption: what it suffered.
            independent: whether the rows that are good must come out as before.
            learned: whether the output may be as wide as what was learned.
        """
        if self.rows and len(corruption.rows) == self.rows and not row_sets.count_rows(output):
            return None  # without the bad rows, nothing is left
        lost = self._lost_rows(output, corruption)
        loose = learned or _holds_text(corruption.value) or outputs.forms(corruption.value) != self.sample_forms
        problem = self._form_problem(outputs.forms(output), lost, loose)
        if problem is not None or not independent or not corruption.rows:
            return problem
        kept = [row for row in range(self.rows or 0) if row not in corruption.rows]
        if not kept or (lost and lost != len(corruption.rows)):
            return None
        remaining = output if lost else row_sets.take(output, kept)
        same = row_sets.same_rows(remaining, row_sets.take(self.clean, kept))
        return None if same else "changed rows that were good"

    def _lost_rows(self, output: Any, corruption: Corruption) -> int:
        """How many rows a filter took away, if no more than were corrupted."""
        after = row_sets.count_rows(output)
        if self.rows is None or after is None or self.clean_rows != self.rows:
            return 0
        return self.rows - after if 0 < self.rows - after <= len(corruption.rows) else 0

    def _form_problem(self, forms: Mapping[str, outputs.Form], lost: int, loose: bool) -> str | None:
        """Where shape or dtype differ; `loose` lets texts change their length and integers with a gap be floats."""
        if lost and set(forms) < set(self.forms) and _are_records(self.forms):
            return None
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


def _are_records(forms: Mapping[str, outputs.Form]) -> bool:
    """Whether an output is a list, each item with forms of its own: a dropped row takes its forms along."""
    return all(path.lstrip(".").partition(".")[0].isdigit() for path in forms)


def _holds_text(sample: Any) -> bool:
    return any(isinstance(leaf, (str, bytes)) for _, leaf in trees.leaves(sample, node=trees.is_node))
