"""Records of any origin in the types that renderers rely on: what is odd becomes text or is left out, nothing raises.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from pytest_nanstab.reporting import text

Measured: TypeAlias = "float | str | None"  # a finite number; "nan", "inf" or "-inf"; not measured

NONFINITE = ("nan", "inf", "-inf")
LISTS = ("loss", "grad_norm", "clipped_grad_norm", "update_ratio")
_LONGEST = 2000  # characters of one text: a message of megabytes would hide all others
_ENTRIES = 1000  # findings, notes, rows of one record
_MOST_STEPS = 10**15


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a mapping with texts as keys, else an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def listed(value: object) -> list[Any]:
    """The first entries of a list; none of anything else."""
    return list(value[:_ENTRIES]) if isinstance(value, (list, tuple)) else []


def real(value: object) -> float | None:
    """`value` as a finite float; None when it is no number, not finite, or larger than any float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(value: object, most: int = _LONGEST) -> str:
    """Anything as one line of text, numbers in four digits, cut where it is too long."""
    try:
        told = text.number(value)
    except (ValueError, OverflowError, RecursionError):  # an integer of thousands of digits, data nested without end
        told = f"({type(value).__name__})"
    return told if len(told) <= most else told[:most] + text.ELLIPSIS


def measured(value: object) -> Measured:
    """One entry of a run's list."""
    number = real(value)
    if number is not None:
        return number
    if isinstance(value, float):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return "inf" if value > 0 else "-inf"  # larger than any float
    return value if isinstance(value, str) and value in NONFINITE else None


def number_or_text(value: object) -> float | str:
    """A finite number, or the text of what is none."""
    number = real(value)
    return shown(value) if number is None else number


def tidy(record: object) -> dict[str, Any]:
    """A record with every key that a renderer reads, each of the type that it expects."""
    given = mapping(record)
    return {
        **{name: shown(given.get(name, "")) for name in ("id", "mode", "outcome")},
        **{name: _told(given.get(name)) for name in ("check", "precision", "seed")},
        "used_torch": bool(given.get("used_torch")),
        "limits": {name: _limit(limit) for name, limit in mapping(given.get("limits")).items()},
        "run": _run(mapping(given.get("run"))),
        "headroom": {name: _numbers(bits) for name, bits in mapping(given.get("headroom")).items()},
        "init_scale": _mappings(given.get("init_scale")),
        "underflow": {name: mapping(row) for name, row in mapping(given.get("underflow")).items()},
        "parity": mapping(given.get("parity")),
        "findings": [_finding(finding) for finding in _mappings(given.get("findings"))],
        "notes": [shown(note) for note in listed(given.get("notes"))],
        "margins": [entry for row in _mappings(given.get("margins")) if (entry := _margin(row)) is not None],
    }


def _told(value: object) -> str | None:
    return None if value is None else shown(value)


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [mapping(entry) for entry in listed(value) if isinstance(entry, Mapping)]


def _limit(limit: object) -> dict[str, Any]:
    stated = mapping(limit)
    return {"value": number_or_text(stated.get("value")), "source": shown(stated.get("source", ""))}


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    steps = real(run.get("steps")) or 0
    lists = {name: _series(run.get(name)) for name in LISTS}
    return {"steps": int(min(max(steps, 0), _MOST_STEPS)), **lists}


def _series(values: object) -> list[Measured]:
    return [measured(value) for value in values] if isinstance(values, (list, tuple)) else []


def _numbers(bits: object) -> dict[str, float | str]:
    return {shown(name): number_or_text(value) for name, value in mapping(bits).items()}


def _finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    kind = shown(finding.get("kind") or "unknown")
    texts = {name: _told(finding.get(name)) for name in ("phase", "module", "op", "source")}
    return {
        **texts,
        "kind": kind,
        "message": shown(finding.get("message") or kind),
        "step": _step(finding.get("step")),
        "evidence": dict(mapping(finding.get("evidence"))),
        **{name: lines_of(finding.get(name)) or None for name in ("cause", "remedy")},
    }


def _step(step: object) -> int | str | None:
    return step if isinstance(step, int) and abs(step) < _MOST_STEPS else _told(step)


def lines_of(value: object) -> list[str]:
    """The lines of a text, or of a list of texts; none of None."""
    texts: Iterable[object] = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return [shown(line) for entry in texts for line in (entry.split("\n") if isinstance(entry, str) else [entry])]


def _margin(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    margin = real(entry.get("margin"))
    if margin is None:
        return None
    figures = {name: _figure(entry.get(name)) for name in ("measured", "limit")}
    return {
        "margin": margin,
        **figures,
        "quantity": shown(entry.get("quantity", "")),
        "step": _step(entry.get("step")),
        "sampled": bool(entry.get("sampled")),
    }


def _figure(value: object) -> float | str | None:
    return None if value is None else number_or_text(value)
