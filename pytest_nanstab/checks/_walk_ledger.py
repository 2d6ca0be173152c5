"""What a walk has found: a bounded number of described faults, the count of all, and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_nanstab.checks._leaves import Leaf
from pytest_nanstab.checks._walk_leaves import ROOT
from pytest_nanstab.findings import Finding

LISTED = 10
_RUNS = 3


def shown(field: str) -> str:
    """A field's name in messages."""
    return field or ROOT


class Ledger:
    """Faults and notes of one walk.

    Attributes:
        findings: the described faults, in order of their batches.
        faults: how many there are, described or not.
        notes: what is unusual and no fault, each once.
    """

    def __init__(self, max_faults: int) -> None:
        self.findings: list[Finding] = []
        self.faults = 0
        self.notes: dict[str, None] = {}
        self._max_faults = max_faults
        self._bad_batches: Counter[str] = Counter()
        self._last_bad: dict[str, int] = {}
        self._dtypes: set[tuple[str, str]] = set()
        self._source: str | None = None

    def values(self, number: int, leaf: Leaf, what: str, evidence: Mapping[str, Any]) -> None:
        """Bad values of one field of one batch; `evidence` has all their rows and columns."""
        if self._counted(number, leaf.field):
            message = f"{what} in batch {number}, field {shown(leaf.field)}{_place(evidence)}"
            self._describe(number, leaf, message, {**evidence, **_cut(evidence, "row"), **_cut(evidence, "column")})

    def dtype(self, number: int, leaf: Leaf, before: str) -> None:
        """A dtype that is not that of earlier batches; each is described once, or it would crowd out other faults."""
        if self._counted(number, leaf.field) and (leaf.field, leaf.dtype) not in self._dtypes:
            self._dtypes.add((leaf.field, leaf.dtype))
            message = f"{leaf.dtype} in batch {number}, field {shown(leaf.field)}, {before} before"
            self._describe(number, leaf, message, {"dtype": leaf.dtype, "shape": list(leaf.shape), "before": before})

    def note(self, field: str, text: str) -> None:
        """Something unusual about a field."""
        self.notes[f"{shown(field)}{text}"] = None

    def _counted(self, number: int, field: str) -> bool:
        """Count a fault; whether there is room to describe it."""
        self.faults += 1
        if self._last_bad.get(field) != number:
            self._last_bad[field] = number
            self._bad_batches[shown(field)] += 1
        return len(self.findings) < self._max_faults

    def _describe(self, number: int, leaf: Leaf, message: str, evidence: Mapping[str, Any]) -> None:
        if self._source is None:
            from pytest_nanstab.attribution.source import user_line

            self._source = user_line()
        place = {"batch": number, "field": shown(leaf.field)}
        self.findings.append(
            Finding(kind="bad-data", message=message, phase="data", source=self._source, evidence={**place, **evidence})
        )

    def told(self, batches: int, notes: Sequence[str]) -> list[Finding]:
        """The described faults, NaN and Inf first; the first of all says how many there are, and the notes."""
        findings = sorted(self.findings, key=lambda finding: not finding.is_nonfinite)
        if findings:
            evidence = {**findings[0].evidence, "note": [*self._totals(batches), *notes]}
            findings[0] = Finding(**{**vars(findings[0]), "evidence": evidence})
        return findings

    def _totals(self, batches: int) -> Iterator[str]:
        for name, count in self._bad_batches.most_common(LISTED):
            yield f"{name}: bad in {count} of {batches} batches"
        if self.faults > len(self.findings):
            yield f"{self.faults} faults in all, the first {len(self.findings)} are described"


def _cut(evidence: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The first rows or columns, and how many there are where those are not all."""
    indices = evidence[f"{name}s"]
    return {f"{name}s": indices[:LISTED], **({f"{name}_count": len(indices)} if len(indices) > LISTED else {})}


def _place(evidence: Mapping[str, Any]) -> str:
    """Where the bad values of a field are, in a few words: " at [1, 2]", ", rows 0-3, column 1 (4 of 12 values)"."""
    first, shape = evidence["first_index"], evidence["shape"]
    if evidence["count"] == 1:
        return f" at {first}" if first else ""
    rows = _listed("row", evidence["rows"], shape[0] if shape else 0)
    # In an image the last dimension is a place and not a feature.
    columns = _listed("column", evidence["columns"], shape[-1]) if 2 <= len(shape) <= 3 else ""
    whole = rows.startswith("all") and (not columns or columns.startswith("all"))
    where = [] if whole else [part for part in (rows, columns) if part]
    return f"{', '.join(['', *where])} ({evidence['count']} of {evidence['of']} values)"


def _listed(word: str, indices: Sequence[int], size: int) -> str:
    """Indices as runs, "rows 0-3, 7"; at most three of them."""
    if not indices:
        return ""
    if len(indices) == size > 1:
        return f"all {word}s"
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    parts = [f"{low}" if low == high else f"{low}-{high}" for low, high in runs[:_RUNS]]
    more = ["..."] if len(runs) > _RUNS else []
    return f"{word}{'' if len(indices) == 1 else 's'} {', '.join([*parts, *more])}"
