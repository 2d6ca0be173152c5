"""What other reports carry of a test: JUnit properties and a pytest-html extra."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from pytest_nanstab.findings import from_dict
from pytest_nanstab.reporting import text
from pytest_nanstab.reporting.block import render
from pytest_nanstab.reporting.model import Record, findings_of, least_headroom, steps_of

_OF_FINDING = ("kind", "step", "module", "op", "source", "message", "cause", "remedy")
_OF_TEST = ("precision", "seed", "steps", "least_headroom_bits", "least_headroom_of")
NAMES = frozenset(f"nanstab_{name}" for name in (*_OF_TEST, *_OF_FINDING))


def properties(record: Record) -> list[tuple[str, str]]:
    """JUnit properties for `item.user_properties`: of an explicit test that ran, and the first finding it fails with.

    Only explicit tests, because strict readers of JUnit files refuse properties they do not expect.
    """
    if record["mode"] != "explicit" or record["outcome"] == "skipped":
        return []
    known = _measured(record)
    if record["outcome"] in ("failed", "xfailed") and findings_of(record):
        first = findings_of(record)[0]
        known.update({name: first.get(name) for name in _OF_FINDING})
    return [(f"nanstab_{name}", text.escape(value)) for name, value in known.items() if value is not None]


def _measured(record: Record) -> dict[str, object]:
    known = {"precision": record["precision"], "seed": record["seed"], "steps": steps_of(record)}
    least = [(bits, quantity, tensor) for quantity, (bits, tensor) in least_headroom(record).items()]
    if not least:
        return known
    bits, quantity, tensor = min(least)
    return {**known, "least_headroom_bits": f"{bits:.2f}", "least_headroom_of": f"{quantity} {tensor}"}


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
