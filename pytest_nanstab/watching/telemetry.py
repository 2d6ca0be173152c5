"""The steps before a failure as a compact table, and the parameters whose gradients grew on the way to it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from pytest_nanstab.findings import Finding
from pytest_nanstab.watching.run import Run

FEWEST = 3  # steps that make a history
_HEAD, _TAIL = 2, 5
_SOME = 4  # steps at either end whose median counts
# Phases of findings to which the steps before say nothing.
_WITHOUT_HISTORY = ("data", "init", "eval")
_MOVED = 3.0  # below this nothing has grown
_COLUMNS = (
    ("loss", "loss"),
    ("grad norm", "grad_norm"),
    ("clipped", "clipped_grad_norm"),
    ("update", "update_ratio"),
    ("lr", "lr"),
    ("scale", "loss_scale"),
)


def history(run: Run) -> list[dict[str, Any]]:
    """One row per step, the middle left out: loss, raw and clipped gradient norm, the largest update ratio, learning
    rate and loss scale. Columns that say nothing go: a norm nothing has clipped, a constant rate. Empty for few steps.
    """
    if run.steps < FEWEST:
        return []
    columns = [(title, values) for title, name in _COLUMNS if (values := _told(run, name))]
    rows = [{"step": step + 1, **{title: _at(values, step) for title, values in columns}} for step in range(run.steps)]
    if len(rows) <= _HEAD + _TAIL + 1:
        return rows
    gap = {name: "" for name, _ in columns}
    return [*rows[:_HEAD], {"step": "…", **gap}, *rows[-_TAIL:]]


def _told(run: Run, name: str) -> Sequence[float | None]:
    values: Sequence[float | None] = getattr(run, name)
    known = [value for value in values if value is not None]
    if not known:
        return ()
    if name == "clipped_grad_norm":
        pairs = zip(run.grad_norm, run.clipped_grad_norm, strict=False)
        return () if all(raw == clipped for raw, clipped in pairs) else values
    return () if name == "lr" and len(set(known)) == 1 else values


def _at(values: Sequence[float | None], step: int) -> Any:
    value = values[step] if step < len(values) else None
    return "" if value is None else value


def grown(run: Run) -> list[tuple[float, str]]:
    """(factor, name) of every parameter by how much its gradient grew, the most first: the medians of a few steps at
    either end of the run."""
    found = []
    for name, parameter in run.parameters.items():
        known = [norm for norm in parameter.grad_norm if norm is not None and math.isfinite(norm)]
        some = min(_SOME, len(known) // 2)
        if some and (first := statistics.median(known[:some])) > 0:
            found.append((statistics.median(known[-some:]) / first, name))
    return sorted(found, reverse=True)


def fold(factor: float) -> str:
    """ "150-fold", "9.2e+04-fold"."""
    return f"{factor:.0f}-fold" if 10 <= factor < 1e4 else f"{factor:.2g}-fold"


def movers(run: Run, most: int = 3) -> str | None:
    """ "encoder.weight 31-fold, head.weight 12-fold": the parameters whose gradients grew most, of those that did."""
    told = [f"{name} {fold(factor)}" for factor, name in grown(run)[:most] if factor > _MOVED]
    return ", ".join(told) or None


def telemetry(run: Run, finding: Finding) -> dict[str, Any]:
    """Both, as evidence of a finding; nothing where there is no history to tell, or it says nothing."""
    silent = finding.phase in _WITHOUT_HISTORY or finding.kind == "lost-precision"
    rows = [] if silent else history(run)
    if not rows:
        return {}
    moved = movers(run)
    return {**({"gradients grew": moved} if moved else {}), "steps before": rows}
