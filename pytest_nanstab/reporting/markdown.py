"""A report as Markdown that fits a CI step's summary; and the pieces of GitHub's Markdown that other renderers use.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_nanstab.reporting.model import Record, findings_of
from pytest_nanstab.reporting.terminal import counts, least_margins, margin_cells, verdict
from pytest_nanstab.reporting.text import escape

_SPECIAL = "\\|*_<>`[]&~$"
_FACTS = ("python", "torch", "numpy", "pytest")
_MOST = 50  # findings: a step summary ends at 1 MiB


def render(report: Mapping[str, Any]) -> str:
    """What the terminal's section says, with cause and remedy of each finding; the JSON has every measurement."""
    records: Sequence[Record] = report["tests"]
    lines = ["## nanstab", "", escaped(counts(records)) if records else "no test was checked or watched", ""]
    environment = report.get("environment") or {}
    known = [f"{name} {environment[name]}" for name in _FACTS if environment.get(name)]
    lines += [escaped(", ".join(known)), ""] if known else []
    lines += [*_findings(records), *_headroom(records)]
    return "\n".join(lines).rstrip() + "\n"


def _findings(records: Sequence[Record]) -> Iterator[str]:
    shown = [record for record in records if verdict(record) in ("failed", "reported", "xfailed")]
    if not shown:
        return
    yield "### findings"
    yield ""
    for record in shown[:_MOST]:
        yield from _finding(record)
    if len(shown) > _MOST:
        yield f"- and {len(shown) - _MOST} more tests"
    yield ""


def _finding(record: Record) -> Iterator[str]:
    first = findings_of(record)[0]
    step = f", step {first['step']}" if first.get("step") is not None else ""
    places = [code(first[name]) for name in ("source", "module", "op") if first.get(name)]
    yield f"- {code(record['id'])}: {escaped(first.get('message') or first['kind'])} ({verdict(record)}{step})"
    yield f"  - {escaped(first['kind'])}{''.join(f', {place}' for place in places)}"
    for name in ("cause", "remedy"):
        if first.get(name):
            yield f"  - {name}: {escaped(str(first[name]))}"


def _headroom(records: Sequence[Record]) -> Iterator[str]:
    rows = least_margins(records)
    if rows:
        yield "### least headroom"
        yield ""
        yield from table(
            ["margin", "measured", "limit", "quantity", "step", "test"], [margin_cells(*row) for row in rows]
        )


# --- pieces


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A header, a rule and one line per row."""
    return [_row(names), _row(["---"] * len(names)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line; control characters as escapes."""
    text = escape(" ".join(text.split()))
    for character in _SPECIAL:
        text = text.replace(character, f"\\{character}")
    return text


def code(text: str) -> str:
    """Text as code: within more backticks than it holds itself."""
    plain = escape(" ".join(str(text).split()))
    fence = "`"
    while fence in plain:
        fence += "`"
    space = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{space}{plain}{space}{fence}"
