"""The HTML report: one page in one file, without scripts and without the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pytest_nanstab.reporting import html_tables, plots, text
from pytest_nanstab.reporting.html_curves import Figure, figures, values_table
from pytest_nanstab.reporting.html_findings import Told, place, told
from pytest_nanstab.reporting.html_tables import Bars, Table
from pytest_nanstab.reporting.model import findings_of, steps_of
from pytest_nanstab.reporting.terminal import counts, least_margins, margin_cells, verdict
from pytest_nanstab.reporting.tolerant import listed, mapping, shown, tidy

_MOST_IN_FULL = 200  # tests with figures and tables
_MOST_FOUND = 1000  # tests with findings: those behind the ones in full are told with their findings alone
_MOST_ROWS = 5000
_MARGINS = 25
_FACT = 300  # characters: a command line can name hundreds of files
_FACTS = ("python", "torch", "numpy", "pytest", "hypothesis", "pytest-nanstab", "platform", "devices", "args")
_TOLD = ("headroom", "init_scale", "underflow", "parity", "notes", "limits")  # beside the curves
_ORDER = ("failed", "xfailed", "reported", "recorded")


@dataclass(frozen=True)
class Found:
    """One line of the list that comes first: a test that failed or has a finding."""

    anchor: str | None
    id: str
    verdict: str
    message: str
    place: Sequence[tuple[str, str]]


@dataclass
class Section:
    """All about one test; `full` ones have figures and tables."""

    anchor: str
    id: str
    verdict: str
    facts: Sequence[str]
    findings: Sequence[Told]
    more_findings: int
    is_open: bool
    full: bool
    same_as: tuple[str, str] | None = None
    figures: Sequence[Figure] = ()
    values: Table | None = None
    bars: Sequence[Bars] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


@dataclass
class Page:
    """What the template shows."""

    counts: str
    facts: Sequence[tuple[str, str]]
    found: Sequence[Found]
    margins: Table | None
    margin_links: Sequence[str | None]
    sections: Sequence[Section]
    rest: Table | None
    found_hidden: int
    remark: str


def render(report: Mapping[str, Any]) -> str:
    """The page of a report; the same report makes the same bytes. Records may be of any origin."""
    with plots.drawing():
        return templates().get_template("report.html.j2").render(page=_page(report))


def templates() -> jinja2.Environment:
    """The package's templates: whatever they print is escaped, control characters included."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        finalize=_printed,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _printed(value: object) -> object:
    return value if isinstance(value, (Markup, jinja2.Undefined)) else text.escape(value)


# --- the page


def _page(report: Mapping[str, Any]) -> Page:
    records = [tidy(record) for record in report.get("tests") or ()]
    first, chosen = _first(records), _chosen(records)
    anchors = {id(record): f"t{number}" for number, record in enumerate(chosen, start=1)}
    by_name = {record["id"]: anchors[id(record)] for record in reversed(chosen)}
    margins = least_margins(records, narrow=False)
    return Page(
        counts=counts(records) if records else "no test was checked or watched",
        facts=_facts(mapping(report.get("environment"))),
        found=[_found(record, anchors.get(id(record))) for record in first[:_MOST_FOUND]],
        found_hidden=max(0, len(first) - _MOST_FOUND),
        margins=_margins(margins),
        margin_links=[by_name.get(node) for _, node in margins[:_MARGINS]],
        sections=_sections(chosen, anchors),
        remark=_remark(sum(map(_wants_section, records)), min(len(chosen), _MOST_IN_FULL)),
        rest=_rest([record for record in records if id(record) not in anchors]),
    )


def _facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = [*_FACTS, *(name for name in environment if name not in _FACTS)]
    return [(name, _fact(environment[name])) for name in names if environment.get(name)]


def _fact(value: object) -> str:
    return shown(" ".join(map(shown, listed(value))) if isinstance(value, (list, tuple)) else value, _FACT)


def word(record: Mapping[str, Any]) -> str:
    """What became of a test: what its findings make of it, else pytest's own word."""
    return verdict(record) or record["outcome"]


def _first(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Tests with findings, failed ones first, then those that failed without one."""
    found = [record for record in records if findings_of(record) or record["outcome"] == "failed"]
    return sorted(found, key=_rank)


def _rank(record: Mapping[str, Any]) -> tuple[bool, int]:
    known = word(record)
    return not findings_of(record), _ORDER.index(known) if known in _ORDER else len(_ORDER)


def _chosen(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tests with a section: those with findings, then explicit ones with measurements while there is room."""
    first = [record for record in _first(records) if findings_of(record)][:_MOST_FOUND]
    explicit = [record for record in records if not findings_of(record) and _wants_section(record)]
    return first + explicit[: max(0, _MOST_IN_FULL - len(first))]


def _wants_section(record: Mapping[str, Any]) -> bool:
    if findings_of(record) or record["mode"] != "explicit":
        return bool(findings_of(record))
    return any(record["run"][name] for name in ("loss", "grad_norm")) or any(record[name] for name in _TOLD)


def _remark(wanted: int, full: int) -> str:
    if wanted <= full:
        return ""
    return f"Figures and tables are shown of {full} of {wanted} tests, failed ones first: the JSON report has all."


# --- what the page lists


def _found(record: Mapping[str, Any], anchor: str | None) -> Found:
    findings = findings_of(record)
    if not findings:
        return Found(None, record["id"], record["outcome"], "failed without a finding: pytest tells why", ())
    first = findings[0]
    return Found(anchor, record["id"], word(record), first["message"], [("kind", first["kind"]), *place(first)])


def _margins(rows: Sequence[tuple[Mapping[str, Any], str]]) -> Table | None:
    if not rows:
        return None
    shown_rows = [margin_cells(*row) for row in rows[:_MARGINS]]
    cells = [[row[-1], *row[:-1]] for row in shown_rows]
    tests = f"{len(cells)} of {len(rows)} tests" if len(cells) < len(rows) else text.plural(len(cells), "test")
    caption = f"Bits between what was measured and what applies, {tests}"
    return Table(caption, ["test", "margin", "measured", "limit", "quantity", "step"], cells, frozenset({1, 2, 3, 5}))


def _rest(records: Sequence[Mapping[str, Any]]) -> Table | None:
    if not records:
        return None
    rows = [[record["id"], word(record), record["mode"], str(steps_of(record)), _nearest(record)] for record in records]
    names = ["test", "outcome", "mode", "steps", "least margin"]
    caption = f"{text.plural(len(records), 'test')} without a section of their own"
    return Table(caption, names, rows[:_MOST_ROWS], frozenset({3, 4}), hidden=max(0, len(rows) - _MOST_ROWS))


def _nearest(record: Mapping[str, Any]) -> str:
    margins = [entry["margin"] for entry in record["margins"]]
    return f"{min(margins):.1f}" if margins else ""


# --- one test


def _sections(chosen: Sequence[Mapping[str, Any]], anchors: Mapping[int, str]) -> list[Section]:
    sections: list[Section] = []
    drawn: dict[str, tuple[str, str]] = {}
    for number, record in enumerate(chosen):
        section = _section(record, anchors[id(record)], full=number < _MOST_IN_FULL)
        if section.full:
            _fill(section, record, drawn)
        sections.append(section)
    return sections


def _section(record: Mapping[str, Any], anchor: str, *, full: bool) -> Section:
    findings, more = told(findings_of(record))
    is_open = word(record) == "failed"
    return Section(anchor, record["id"], word(record), _section_facts(record), findings, more, is_open, full)


def _section_facts(record: Mapping[str, Any]) -> list[str]:
    known = [f"{name} {record[name]}" for name in ("check", "precision", "seed") if record[name] is not None]
    steps = steps_of(record)
    return [record["mode"], *known, *([text.plural(steps, "step")] if steps else [])]


def _tables(*found: Table | None) -> list[Table]:
    return [table for table in found if table is not None]


def _fill(section: Section, record: Mapping[str, Any], drawn: dict[str, tuple[str, str]]) -> None:
    """Figures and tables; items of a suite that read the same training show it once."""
    measured = repr((record["run"], record["headroom"], record["limits"]))
    has_curves = any(record["run"][name] for name in ("loss", "grad_norm")) or record["headroom"]
    section.same_as = drawn.get(measured) if has_curves else None
    if section.same_as is None:
        drawn[measured] = (section.anchor, section.id)
        section.figures = figures(record, section.anchor)
        section.values = values_table(record["run"])
        section.bars = html_tables.headroom(record)
        section.tables = _tables(html_tables.limits_table(record["limits"]), html_tables.underflow(record))
    section.tables = [*section.tables, *_tables(html_tables.parity(record), html_tables.init_scale(record))]
    section.notes = record["notes"]
