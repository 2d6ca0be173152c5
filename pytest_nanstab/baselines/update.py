"""`--nanstab-update`: gathers what the items recorded, wherever they ran, and writes it in one process at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_nanstab.baselines import files
from pytest_nanstab.baselines.compare import NOTICED_BITS
from pytest_nanstab.baselines.items import RECORDED
from pytest_nanstab.ranks.place import is_first
from pytest_nanstab.reporting.text import escape
from pytest_nanstab.suite.expand import case_of

_STALE = "nanstab_stale"


class BaselineUpdate:
    """The hooks of a session that records baselines; workers of pytest-xdist send, only the controller writes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._is_worker = hasattr(config, "workerinput")
        self._recorded: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = defaultdict(dict)
        self._discarded: list[str] = []
        self._stale: set[str] = set()
        self._lines: list[str] = []
        self._failed: list[str] = []

    @pytest.hookimpl(tryfirst=True)  # before anything is deselected
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Look for entries that no test stands behind any more."""
        self._stale |= stale(self._config, items)
        if self._is_worker:
            self._config.workeroutput[_STALE] = sorted(self._stale)  # type: ignore[attr-defined]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a worker found stale."""
        self._stale |= set(getattr(node, "workeroutput", {}).get(_STALE, ()))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Let what the item recorded ride on its report."""
        report = yield
        if call.when == "call":
            report.nanstab_baselines = item.stash.get(RECORDED, [])
            item.stash[RECORDED] = []
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a passed test recorded; a failed one is no model to compare with."""
        if self._is_worker:
            return
        for record in getattr(report, "nanstab_baselines", ()):
            if report.passed:
                self._recorded[record["file"]][record["item"], record["label"]] = record
            else:
                self._discarded.append(f"{record['file']}::{record['item']} {record['label']}")

    def pytest_sessionfinish(self) -> None:
        """Write; the summary tells of a file that cannot be written, and the next comparison misses it."""
        if self._is_worker or not is_first():
            return
        folder = files.folder_of(self._config)
        for file, records in sorted(self._recorded.items()):
            self._write(folder, file, list(records.values()))

    def _write(self, folder: Path, file: str, records: Sequence[Mapping[str, Any]]) -> None:
        try:
            path = files.path_for(folder, file)
            new = files.update(path, records)
        except (OSError, ValueError) as error:
            self._failed.append(f"could not write the baselines of {file}: {error}")
        else:
            self._lines += self._written(path, records, new)

    def _written(self, path: Path, records: Sequence[Mapping[str, Any]], new: int) -> list[str]:
        shown = path.relative_to(self._config.rootpath.resolve()).as_posix()
        lines = [f"{shown}: {new} recorded for the first time, {len(records) - new} rewritten"]
        for record in records:
            note = _unnoticed(record["entry"].get("spread") or {})
            if note is not None:
                lines.append(f"  {record['item']} {record['label']}: {note}")
        return lines

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was written, what was not, and what looks stale."""
        if not is_first():
            return
        lines = [*self._lines, *(f"not recorded, the test did not pass: {name}" for name in self._discarded)]
        if self._stale:
            lines += ["stale, no test stands behind it (nothing is deleted):", *(f"  {x}" for x in sorted(self._stale))]
        if not lines and not self._failed:
            lines = ["no test asked for a baseline: nothing was recorded"]
        terminalreporter.section("nanstab baselines")
        for line in lines:
            terminalreporter.write_line(escape(line))
        for line in self._failed:
            terminalreporter.write_line(escape(line), red=True, bold=True)


def _unnoticed(spread: Mapping[str, Any]) -> str | None:
    """Where the runs of a recording lie so far apart that a factor of 2 will pass."""
    rows = [bits for names in spread.get("headroom", {}).values() for bits in names.values()]
    known = [bits for bits in (*spread.get("loss", ()), *spread.get("grad_norm", ()), *rows) if bits is not None]
    wide = [bits for bits in known if bits >= NOTICED_BITS]
    if not wide:
        return None
    return (
        f"seeds and thread counts lie up to {max(wide):.2g} bits apart; "
        f"a factor of 2 will go unnoticed in {len(wide)} of {len(known)} numbers"
    )


def stale(config: pytest.Config, items: Sequence[pytest.Item]) -> set[str]:
    """Recorded entries without a collected test, as "tests/test_gpt.py::test_gpt cpu 32-true".

    Judged are files that were collected as a whole, and files that are gone. A damaged file is the items' to tell.
    """
    if config.getoption("lf", False):
        return set()  # pytest then collects only what failed
    folder = files.folder_of(config)
    collected: dict[str, set[tuple[str, str | None]]] = defaultdict(set)
    for item in items:
        case = case_of(item)
        collected[files.file_of(item)].add((files.item_name(item), None if case is None else case.precision))
    partial = {argument.partition("::")[0] for argument in map(str, config.args) if "::" in argument}
    found: set[str] = set()
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else ():
        file = path.relative_to(folder).with_suffix(".py").as_posix()
        is_gone = not (config.rootpath / file).exists()
        is_whole = file in collected and not any(Path(argument).name == Path(file).name for argument in partial)
        if is_gone or is_whole:
            found |= _unclaimed(path, file, collected[file])
    return found


def _unclaimed(path: Path, file: str, collected: set[tuple[str, str | None]]) -> set[str]:
    try:
        tests = files.load(path)
    except files.BaselineFileError:
        return set()
    return {
        f"{file}::{item} {label}"
        for item, entries in tests.items()
        for label in entries
        if not any(_claims(name, precision, item, label) for name, precision in collected)
    }


def _claims(name: str, precision: str | None, item: str, label: str) -> bool:
    if precision is not None:
        return item == name and label.rpartition(" ")[2] == precision
    return item == name or item.startswith(f"{name}{files.NAME_SEPARATOR}")
