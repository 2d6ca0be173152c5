"""What other reports carry of a test: JUnit properties and a pytest-html extra."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from pytest_nanstab.findings import from_dict
from pytest_nanstab.reporting import text
from pytest_nanstab.reporting.block import render
from pytest_nanstab.reporting.model import Record, findings_of

_PROPERTIES = ("kind", "step", "module", "op", "source", "message", "cause", "remedy")


def properties(record: Record) -> list[tuple[str, str]]:
    """JUnit properties for `item.user_properties`: the first finding of an explicit test, else none.

    Only explicit tests, because strict readers of JUnit files refuse properties they do not expect.
    """
    found = findings_of(record)
    if record["mode"] != "explicit" or not found:
        return []
    first = found[0]
    return [(f"nanstab_{name}", text.escape(first[name])) for name in _PROPERTIES if first.get(name) is not None]


def html_extra(record: Record) -> dict[str, str] | None:
    """An entry for pytest-html's `report.extras`: findings and margins of the test; None when it has neither."""
    content = "".join([*_findings(record), *_margins(record)])
    if not content:
        return None
    return {
        "name": "nanstab",
        "format_type": "html",
        "content": f'<div class="nanstab">{content}</div>',
        "mime_type": "text/html",
        "extension": "html",
    }


def _findings(record: Record) -> Iterator[str]:
    for finding in findings_of(record):
        yield f"<h4>{escape(str(finding['kind']))}</h4><pre>{escape(render([from_dict(finding)]))}</pre>"


def _margins(record: Record) -> Iterator[str]:
    rows = [
        {"margin": f"{'≤' if entry.get('sampled') else ''}{entry['margin']:.1f}", **_rest(entry)}
        for entry in record.get("margins") or ()
    ]
    if rows:
        yield "<h4>margins in bits</h4>"
        yield f"<pre>{escape(chr(10).join(text.table(rows, 100)))}</pre>"


def _rest(entry: Record) -> dict[str, object]:
    return {name: entry.get(name) for name in ("measured", "limit", "quantity", "step") if entry.get(name) is not None}
