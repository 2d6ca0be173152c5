"""A walk over all batches of a loader, and what it saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_nanstab.checks._columns import Statistics
from pytest_nanstab.checks._leaves import Leaf
from pytest_nanstab.checks._walk_fields import FieldWalk
from pytest_nanstab.checks._walk_leaves import batch_leaves, frame_fields
from pytest_nanstab.checks._walk_ledger import LISTED, Ledger, shown
from pytest_nanstab.findings import Finding


@dataclass
class Survey:
    """What a walk over batches saw.

    Attributes:
        findings: the described faults, in order of their batches.
        batches: how many batches were looked at.
        complete: whether the end was reached before a bound on time or number.
        faults: how many faults there are, described or not.
        notes: what is unusual and no fault: constant columns, object arrays.
        statistics: on request, of the columns of float fields with two dimensions, by field.
    """

    findings: list[Finding] = field(default_factory=list)
    batches: int = 0
    complete: bool = True
    faults: int = 0
    notes: list[str] = field(default_factory=list)
    statistics: dict[str, Statistics] = field(default_factory=dict)


class Walker:
    """Looks at one batch after the other and gathers faults and notes."""

    def __init__(self, specs: Mapping[str, Any], max_faults: int, *, statistics: bool = False) -> None:
        self.ledger = Ledger(max_faults)
        self.batches = 0
        self._specs = specs
        self._statistics = statistics
        self._fields: dict[str, FieldWalk] = {}
        self._frames: tuple[int, dict[str, str | None]] = 0, {}

    def look(self, number: int, batch: Any) -> None:
        """Look at one batch, counted from 1; `ValueError` when it lacks a field of the domain."""
        self.batches = number
        met = set()
        for leaf in batch_leaves(batch):
            met.add(leaf.field)
            known = self._fields.get(leaf.field)
            (known or self._meet(number, leaf, batch)).look(number, leaf)
        lost = sorted(self._specs.keys() - met)
        if lost:
            fields = ", ".join(sorted(map(shown, met))) or "none"
            raise ValueError(f"domain names {shown(lost[0])!r}, which batch {number} lacks; its fields are {fields}")

    def _meet(self, number: int, leaf: Leaf, batch: Any) -> FieldWalk:
        if self._frames[0] != number:
            self._frames = number, frame_fields(batch)
        frames = self._frames[1]
        walk = FieldWalk(
            leaf.field,
            self._specs.get(leaf.field),
            self.ledger,
            frame=frames.get(leaf.field),
            loose=leaf.field in frames,
            statistics=self._statistics,
        )
        return self._fields.setdefault(leaf.field, walk)

    def finished(self, *, complete: bool) -> Survey:
        """What was seen; `ValueError` when there was nothing to check."""
        if not self.batches:
            raise ValueError("batches is empty: nothing was checked (an iterator that was walked before stays empty)")
        if not self._fields:
            raise ValueError(f"no number in any of {self.batches} batches: nothing was checked")
        for walk in self._fields.values():
            walk.finish()
        notes = [*self.ledger.notes, *self._column_notes(), *self._frame_notes()]
        return Survey(
            findings=self.ledger.told(self.batches, notes),
            batches=self.batches,
            complete=complete,
            faults=self.ledger.faults,
            notes=notes,
            statistics={name: walk.statistics for name, walk in self._fields.items() if walk.statistics is not None},
        )

    def _column_notes(self) -> Iterator[str]:
        for name, walk in self._fields.items():
            if walk.columns is None:
                continue
            if walk.frame is None and (constant := walk.columns.constant()):
                yield f"{shown(name)}: constant in columns {_listed(list(map(str, constant)))}"
            near = walk.columns.nearly_constant()
            if near:
                yield f"{shown(name)}: nearly constant{_near(near, single=walk.frame is not None)}"

    def _frame_notes(self) -> Iterator[str]:
        """Constant columns of each frame, unless all are: then there was one distinct row."""
        frames: dict[str, list[FieldWalk]] = {}
        for walk in self._fields.values():
            if walk.frame is not None and walk.columns is not None:
                frames.setdefault(walk.frame, []).append(walk)
        for frame, walks in frames.items():
            constant = [walk.field for walk in walks if walk.columns is not None and walk.columns.is_constant()]
            if constant and len(constant) < len(walks):
                yield f"{shown(frame)}: constant in columns {_listed(constant)}"


def _near(near: list[tuple[int, float, float]], *, single: bool) -> str:
    """The nearly constant columns with their ranges, and why that matters."""
    spans = [f"{low!r} to {high!r}" if single else f"{index} ({low!r} to {high!r})" for index, low, high in near]
    where = f" ({spans[0]})" if single else f" in columns {_listed(spans)}"
    return f"{where}: under 256 float32 steps, so that scaling them in float32 leaves mostly rounding"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"
