"""A comparison of reports as text for a terminal and as Markdown for a CI summary. Standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pytest_nanstab.reporting.comparing import Cell, Comparison
from pytest_nanstab.reporting.markdown import code, escaped, table
from pytest_nanstab.reporting.text import plural, wrap
from pytest_nanstab.reporting.text import table as text_table

TITLES = {
    "finite": "finite here, not there",
    "outcome": "another outcome",
    "headroom": "headroom",
    "gradient norm": "gradient norm",
}


def as_text(comparison: Comparison, *, width: int = 80, everything: bool = False) -> str:
    """The tests that are not the same everywhere (or all of them), then what changed, one paragraph per change."""
    lines = [summary(comparison), ""]
    rows = _rows(comparison, everything=everything)
    if rows:
        lines += [*text_table(rows, width, most=len(rows)), ""]
    for change in comparison.changes:
        lines += [f"{TITLES[change.kind]}: {change.test}", *(f"  {line}" for line in wrap(change.words, width - 2))]
    return "\n".join(lines).rstrip() + "\n"


def as_markdown(comparison: Comparison, *, everything: bool = False) -> str:
    """The same as a table and a list in GitHub's Markdown."""
    lines = [f"### nanstab: {summary(comparison)}", ""]
    rows = _rows(comparison, everything=everything)
    if rows:
        lines += [*table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows]), ""]
    for change in comparison.changes:
        lines.append(f"- **{TITLES[change.kind]}**: {code(change.test)}: {escaped(change.words)}")
    return "\n".join(lines).rstrip() + "\n"


def summary(comparison: Comparison) -> str:
    """How many tests, environments and changes of each kind."""
    kinds = Counter(change.kind for change in comparison.changes)
    environments = plural(len(comparison.environments), "environment")
    changed = ", ".join(f"{count} x {TITLES[kind]}" for kind, count in kinds.items()) or "the same in all"
    return f"{plural(len(comparison.rows), 'test')} in {environments}: {changed}"


def _rows(comparison: Comparison, *, everything: bool) -> list[dict[str, object]]:
    changed = {change.test for change in comparison.changes}
    chosen = [test for test in comparison.rows if everything or test in changed]
    return [{"test": test, **_row(comparison.environments, comparison.rows[test])} for test in chosen]


def _row(environments: Sequence[str], cells: Sequence[Cell | None]) -> dict[str, object]:
    return {name: shown_cell(cell) for name, cell in zip(environments, cells, strict=True)}


def shown_cell(cell: Cell | None) -> str:
    """The outcome with the headroom, where everything is finite."""
    if cell is None:
        return "did not run"
    bits = f", {cell.bits:.0f} bits" if cell.bits is not None and cell.finite else ""
    return f"{cell.words}{bits}"
