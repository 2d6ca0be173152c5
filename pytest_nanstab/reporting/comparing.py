"""Reports of several environments side by side: one table, and what changed between them. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_nanstab import strict_json
from pytest_nanstab.config import told
from pytest_nanstab.reporting.model import SCHEMA, findings_of
from pytest_nanstab.reporting.tolerant import mapping, shown, tidy

# What tells environments apart, in this order; of these, those that differ make an environment's name.
_FACTS = ("python", "torch", "numpy", "pytest", "hypothesis", "pytest-nanstab", "platform")
_SHORT = {"python": "py", "pytest-nanstab": "nanstab "}
_DRIFT = 1.0  # bits: a factor of 2, as baselines have it
_NONFINITE = ("nonfinite", "accepted-nonfinite")
Kind = Literal["finite", "outcome", "gradient norm", "headroom"]


class ReportFileError(ValueError):
    """A file that is no report of this plugin."""


@dataclass(frozen=True)
class Cell:
    """One test in one environment.

    Attributes:
        outcome: pytest's word for it.
        words: the outcome, with the step and kind of what failed.
        finite: whether no value was found that is not finite.
        norm: the median raw gradient norm; None where none was measured.
        bits: the least headroom in bits; None where none was measured.
        where: the tensor with the least headroom.
    """

    outcome: str
    words: str
    finite: bool
    norm: float | None = None
    bits: float | None = None
    where: str | None = None


@dataclass(frozen=True)
class Change:
    """One test that is not the same in all environments; `fails` when that is no mere drift."""

    test: str
    kind: Kind
    words: str

    @property
    def fails(self) -> bool:
        """Whether a comparison with this change fails: figures drift from version to version, outcomes must not."""
        return self.kind in ("finite", "outcome")


@dataclass(frozen=True)
class Comparison:
    """All tests in all environments.

    Attributes:
        environments: their names, short and none twice, in the order of the files.
        rows: for each test one cell per environment, None where it did not run.
        changes: what is not the same everywhere, the most serious first.
    """

    environments: tuple[str, ...]
    rows: Mapping[str, tuple[Cell | None, ...]]
    changes: tuple[Change, ...]

    @property
    def fails(self) -> bool:
        """Whether an outcome changed."""
        return any(change.fails for change in self.changes)


# --- reading


def files_of(path: str | Path) -> list[Path]:
    """The file itself, or the `*.json` files of a folder in the order of their names.

    Raises:
        ReportFileError: the folder holds none.
    """
    given = Path(path)
    if not given.is_dir():
        return [given]
    found = sorted(given.glob("*.json"))
    if not found:
        raise ReportFileError(f"{path}: a folder without any .json file")
    return found


def read(path: str | Path) -> dict[str, Any]:
    """A report that `--nanstab-report` has written; parsed, never run.

    Raises:
        ReportFileError: there is no such file, or it is no report, or one of another schema.
    """
    try:
        found = strict_json.read(Path(path))
    except OSError as error:
        raise ReportFileError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ReportFileError(f"{path}: no JSON report of --nanstab-report: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("tests"), list):
        raise ReportFileError(f"{path}: JSON, but no report of --nanstab-report: it has no list of tests")
    schema = found.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise ReportFileError(f"{path}: schema {told(schema)}, this version reads {SCHEMA}")
    return found


# --- comparing


def compare(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> Comparison:
    """Put reports, given with the names of their files, side by side."""
    tables = [_cells(report) for _, report in reports]
    tests = list(dict.fromkeys(test for table in tables for test in table))
    rows = {test: tuple(table.get(test) for table in tables) for test in tests}
    environments = _names(reports)
    found = [change for test, cells in rows.items() for change in _changes(test, cells, environments)]
    order: tuple[Kind, ...] = ("finite", "outcome", "headroom", "gradient norm")
    found.sort(key=lambda change: order.index(change.kind))
    return Comparison(environments, rows, tuple(found))


def _cells(report: Mapping[str, Any]) -> dict[str, Cell]:
    return {
        record["id"]: _cell(record)
        for given in report["tests"]
        if isinstance(given, dict) and "id" in given
        for record in [tidy(given)]
    }


def _cell(record: Mapping[str, Any]) -> Cell:
    findings = findings_of(record)
    bad = [finding for finding in findings if finding["kind"].startswith(_NONFINITE)]
    bits, where = _least(record["headroom"])
    return Cell(
        outcome=record["outcome"],
        words=_words(record, findings),
        finite=not bad,
        norm=_median(record["run"]["grad_norm"]),
        bits=bits,
        where=where,
    )


def _words(record: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> str:
    outcome = str(record["outcome"])
    if not findings:
        return outcome
    first = findings[0]
    step = f", step {first['step']}" if first.get("step") is not None else ""
    return f"{outcome}: {first['kind']}{step}"


def _median(values: Iterable[object]) -> float | None:
    known = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value) and value > 0]
    return statistics.median(known) if known else None


def _least(headroom: Mapping[str, Any]) -> tuple[float | None, str | None]:
    entries = [
        (float(bits), f"{quantity} {name}")
        for quantity, tensors in headroom.items()
        for name, bits in tensors.items()
        if isinstance(bits, (int, float)) and math.isfinite(bits)
    ]
    return min(entries, default=(None, None))


def _names(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, ...]:
    """What differs between the environments, or where nothing does the names of the files."""
    given = [mapping(report.get("environment")) for _, report in reports]
    facts = [{name: shown(found.get(name)) for name in _FACTS} for found in given]
    differing = [name for name in _FACTS if len({found[name] for found in facts}) > 1]
    named = [", ".join(f"{_SHORT.get(name, f'{name} ')}{found[name]}" for name in differing) for found in facts]
    if len(set(named)) == len(named) and all(named):
        return tuple(named)
    return tuple(shown(Path(path).stem) for path, _ in reports)


def _changes(test: str, cells: Sequence[Cell | None], environments: Sequence[str]) -> Iterable[Change]:
    ran = [(name, cell) for name, cell in zip(environments, cells, strict=True) if cell and cell.outcome != "skipped"]
    if len({cell.finite for _, cell in ran}) > 1:
        yield Change(test, "finite", _told(ran, lambda cell: cell.words))
    elif len({cell.outcome for _, cell in ran}) > 1:
        yield Change(test, "outcome", _told(ran, lambda cell: cell.words))
    yield from _drift(test, ran)


def _told(ran: Sequence[tuple[str, Cell]], words: Any) -> str:
    """Each outcome with the environments that have it."""
    groups: dict[str, list[str]] = {}
    for name, cell in ran:
        groups.setdefault(words(cell), []).append(name)
    return "; ".join(f"{outcome} ({', '.join(names)})" for outcome, names in groups.items())


def _drift(test: str, ran: Sequence[tuple[str, Cell]]) -> Iterable[Change]:
    finite = [(name, cell) for name, cell in ran if cell.finite]
    norms = sorted((cell.norm, name) for name, cell in finite if cell.norm is not None)
    if len(norms) > 1 and math.log2(norms[-1][0]) - math.log2(norms[0][0]) >= _DRIFT:
        bits = math.log2(norms[-1][0]) - math.log2(norms[0][0])
        ends = f"{norms[0][0]:.3g} ({norms[0][1]}) to {norms[-1][0]:.3g} ({norms[-1][1]})"
        yield Change(test, "gradient norm", f"{ends}, {bits:.1f} bits apart")
    rooms = sorted((cell.bits, name, cell.where or "") for name, cell in finite if cell.bits is not None)
    if len(rooms) > 1 and rooms[-1][0] - rooms[0][0] >= _DRIFT:
        (least, one, where), (most, other, _) = rooms[0], rooms[-1]
        yield Change(test, "headroom", f"{least:.1f} bits ({one}) to {most:.1f} ({other}), least at {where}")
