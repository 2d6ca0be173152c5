"""The "nanstab" section at the end of a session: numbers first, then what failed, then what came close."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_nanstab.reporting import text
from pytest_nanstab.reporting.model import Record, findings_of, never_used_torch, steps_of

if TYPE_CHECKING:
    import pytest

NARROW_BITS = 4.0  # margins under this are listed unasked: a factor of 16 is what one learning-rate sweep spans
_SHORTEST_ID = 20
_SHORTEST_MODULE = 8
_HEADER = ("margin", "measured", "limit", "quantity", "step", "test")
_LEFT = frozenset({"measured", "limit", "quantity", "test"})


def write_summary(reporter: pytest.TerminalReporter, records: Sequence[Record], *, headroom: int | None = None) -> None:
    """Write the section, or nothing when no record has anything to say.

    Args:
        reporter: pytest's terminal reporter.
        records: one test record per item, in order of running.
        headroom: the number of `--nanstab-headroom`: so many least margins, 0 for all, None for those under 4 bits.
    """
    width = reporter.config.get_terminal_writer().fullwidth
    lines = summary_lines(records, headroom=headroom, width=width, verbosity=reporter.config.get_verbosity())
    if lines:
        reporter.write_sep("=", "nanstab")
        for line in lines:
            reporter.write_line(line)


def summary_lines(
    records: Sequence[Record], *, headroom: int | None = None, width: int = 80, verbosity: int = 0
) -> list[str]:
    """The lines of the section; none without records. Parameters as in `write_summary`."""
    if not records:
        return []
    return [
        counts(records),
        *_failures(records, width, verbosity),
        *_least_headroom(records, headroom),
        *(_notes(records, width) if verbosity > 0 else []),
        *(_limits(records, width) if verbosity > 0 else []),
    ]


# --- the first line


def counts(records: Sequence[Record]) -> str:
    """How many tests were checked and watched, over how many steps, and what became of them."""
    ran = [record for record in records if record["outcome"] != "skipped"]
    checked = sum(record["mode"] == "explicit" for record in ran)
    unused = sum(map(never_used_torch, ran))
    watched = len(ran) - checked - unused
    explicit_only = all(record["mode"] == "explicit" for record in records)
    parts = [
        *_tests(checked, None if explicit_only else watched),
        text.plural(sum(map(steps_of, ran)), "optimizer step"),
        *_outcomes(records),
    ]
    tail = f"; {text.plural(unused, 'test')} never used torch" if unused else ""
    return ", ".join(parts) + tail


def _tests(checked: int, watched: int | None) -> list[str]:
    if checked and watched:
        return [f"{text.plural(checked, 'test')} checked", f"{watched} watched"]
    if checked or watched is None:
        return [f"{text.plural(checked, 'test')} checked"]
    return [f"{text.plural(watched, 'test')} watched"]


def _outcomes(records: Sequence[Record]) -> Iterator[str]:
    """Outcomes that findings explain, and explicit tests that were not run; pytest counts the rest itself."""
    found = Counter(verdict(record) for record in records)
    for word in ("failed", "xfailed", "reported", "skipped"):
        if found[word]:
            yield f"{found[word]} {word}"


def verdict(record: Record) -> str | None:
    """A word for what findings make of a record; None where there is nothing to say."""
    if record["outcome"] == "skipped":
        return "skipped" if record["mode"] == "explicit" else None
    if not findings_of(record):
        return None
    if record["outcome"] in ("failed", "xfailed"):
        return str(record["outcome"])
    return "reported" if record["mode"] == "report" else "recorded"


# --- one line per test with findings


def _failures(records: Sequence[Record], width: int, verbosity: int) -> list[str]:
    shown = {"failed", "reported", *(("xfailed", "recorded") if verbosity > 0 else ())}
    rows = [(_group(record), record) for record in records if verdict(record) in shown]
    column = max((len(group) for group, _ in rows), default=0)
    return [_failure_line(text.pad(group, column), record, width) for group, record in rows]


def _group(record: Record) -> str:
    word = verdict(record)
    if word != "failed":
        return str(word)
    kind = str(findings_of(record)[0]["kind"])
    return "non-finite" if kind.startswith("nonfinite-") else kind


def _failure_line(group: str, record: Record, width: int) -> str:
    """Group, test, step, module, source; node id and module shrink to fit, then module and step go, the source never.

    Only a failed test's id is shortened below what it needs: pytest's own summary says it again in full.
    """
    first = findings_of(record)[0]
    step = f"step {first['step']}" if first.get("step") is not None else ""
    module, source = (text.escape(first.get(name) or "") for name in ("module", "source"))
    node = text.escape(record["id"])
    shortest = min(text.columns(node), _SHORTEST_ID) if verdict(record) == "failed" else text.columns(node)
    for parts in ([step, module, source], [step, source], [source]):
        given = [part for part in parts if part]
        room = width - sum(text.columns(part) + 2 for part in [group, *given])
        if module in given and room < shortest <= room + text.columns(module) - _SHORTEST_MODULE:
            given[given.index(module)] = text.cut_middle(module, text.columns(module) - shortest + room)
            room = shortest
        if room >= shortest:
            break
    return "  ".join([group, text.cut_id(node, max(room, shortest)), *given])


# --- the margins


def _least_headroom(records: Sequence[Record], headroom: int | None) -> list[str]:
    """The table of each test's least margin, nearest first."""
    nearest = least_margins(records, narrow=False)
    shown = least_margins(records) if headroom is None else nearest[: headroom or len(nearest)]
    if not shown:
        return []
    hidden = len(shown) < len(nearest)
    hint = f" ({len(shown)} of {len(nearest)}, --nanstab-headroom=0 for all)" if hidden else ""
    return [f"least headroom{hint}", *_margin_table([margin_cells(*row) for row in shown])]


def least_margins(records: Sequence[Record], *, narrow: bool = True) -> list[tuple[Mapping[str, Any], str]]:
    """(least margin, node id) of every test, nearest first; with `narrow` those under 4 bits only."""
    nearest = _distinct(
        (min(found, key=_margin), record["id"]) for record in records if (found := record.get("margins"))
    )
    nearest.sort(key=lambda row: _margin(row[0]))
    return [row for row in nearest if not narrow or _margin(row[0]) < NARROW_BITS]


def _distinct(rows: Iterable[tuple[Mapping[str, Any], str]]) -> list[tuple[Mapping[str, Any], str]]:
    """One row for the items of a suite that read the same training: the same figure says nothing twice."""
    first: dict[tuple[object, ...], tuple[Mapping[str, Any], str]] = {}
    for entry, node in rows:
        figure = (node.partition("[")[0], *(entry.get(name) for name in ("quantity", "measured", "limit", "step")))
        first.setdefault(figure, (entry, node))
    return list(first.values())


def _margin(entry: Mapping[str, Any]) -> float:
    return float(entry["margin"])


def margin_cells(entry: Mapping[str, Any], node: str) -> list[str]:
    """A margin as a row of its table."""
    return [
        f"{'≤' if entry.get('sampled') else ''}{_margin(entry):.1f}",
        _short(entry.get("measured")),
        _short(entry.get("limit")),
        text.escape(entry.get("quantity", "")),
        text.number(entry["step"]) if entry.get("step") is not None else "",
        text.escape(node),
    ]


def _short(value: object) -> str:
    return f"{value:.1e}" if isinstance(value, (int, float)) else text.escape("" if value is None else value)


def _margin_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The header and the rows; node ids stay whole, as in pytest's --durations, so they can be copied."""
    cells = [_HEADER, *rows]
    widths = [max(map(text.columns, column)) for column in zip(*cells, strict=True)]
    return ["  " + _table_line(line, widths) for line in cells]


def _table_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    columns = zip(_HEADER, cells, widths, strict=True)
    return "  ".join(text.pad(cell, width, right=name not in _LEFT) for name, cell, width in columns).rstrip()


# --- what is worth knowing and fails nothing, with -v


def _notes(records: Sequence[Record], width: int) -> list[str]:
    lines: list[str] = []
    for record in records:
        for note in record.get("notes") or ():
            head, *rest = text.wrap(f"note  {text.escape(record['id'])}  {text.escape(note)}", width)
            lines += [head, *(f"    {line}" for line in rest)]
    return lines


# --- the limits in force, with -v


def _limits(records: Sequence[Record], width: int) -> list[str]:
    lines: list[str] = []
    for record in records:
        if record["mode"] == "explicit" and record.get("limits"):
            stated = ", ".join(
                f"{name}={text.number(limit['value'])} ({text.escape(limit['source'])})"
                for name, limit in record["limits"].items()
            )
            head, *rest = text.wrap(f"{text.escape(record['id'])}  {stated}", width, separator=", ")
            lines += [head, *(f"    {line}" for line in rest)]
    return lines
