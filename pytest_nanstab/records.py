"""Test records: made where a test runs, riding on its report, gathered by the process that prints and writes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nanstab.errors import StabilityError
from pytest_nanstab.findings import jsonable
from pytest_nanstab.items import WATCH, ItemWatch, carried, chain, limits_data, measured, plain_id
from pytest_nanstab.settings import SETTINGS, Settings
from pytest_nanstab.suite.expand import RECORD

if TYPE_CHECKING:
    from pytest_nanstab.suite.expand import CaseRecord

NOTES: pytest.StashKey[list[str]] = pytest.StashKey()
_PACKAGE = str(Path(__file__).parent) + os.sep
_LINE = re.compile(r"\s+.+:\d+$")  # "        models/loss.py:12"


def attach(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Give a stability failure its block, and let the record of a test's call phase ride on its report."""
    if call.excinfo is not None and isinstance(call.excinfo.value, StabilityError):
        from pytest_nanstab.reporting import failure

        report.longrepr = failure.longrepr(item, call.excinfo)
    watch = item.stash.get(WATCH, None)
    if watch is not None and watch.is_open:  # a subtest reports while the test still runs
        if call.excinfo is not None and report.failed:
            watch.failed_inside(call.excinfo.value)
    elif call.when == "call":
        case = item.stash.get(RECORD, None)
        record = watch.record() if watch is not None else None if case is None else _record_of_case(case)
        if record is not None:
            record["notes"] += item.stash.get(NOTES, [])
            _carry(item, call, report, {"id": plain_id(item), **record, "outcome": _outcome(report, watch)})
    elif call.when == "teardown":
        _forget(item)


def _forget(item: pytest.Item) -> None:
    """Drop the measurements: items live as long as the session."""
    if WATCH in item.stash:
        item.stash[WATCH].forget()
        del item.stash[WATCH]
    if RECORD in item.stash:
        del item.stash[RECORD]


def _carry(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, record: dict[str, Any]) -> None:
    _add_section(call, report, record)
    _add_margins(record)
    _publish(item, report, record)
    if not _wants_lists(item.config.stash[SETTINGS], record):
        record["run"] = {name: value if name == "steps" else [] for name, value in record["run"].items()}
    report.nanstab = jsonable(record)  # type: ignore[attr-defined]


def _record_of_case(case: CaseRecord) -> dict[str, Any]:
    return {
        "mode": "explicit",
        "check": case.check,
        "precision": case.precision,
        "seed": case.seed,
        "limits": limits_data(case.limits),
        "run": None if case.run is None else case.run.as_dict(),
        **measured(case.run),
        "init_scale": case.init_scale,
        "parity": case.parity,
        "findings": [finding.as_dict() for finding in case.findings],
        "notes": list(case.notes),
        "used_torch": True,
    }


def _outcome(report: pytest.TestReport, watch: ItemWatch | None) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.outcome == "skipped" else "xpassed"
    # pytest turns a passed test with a failed subtest into a failed one later, when it prints it.
    return "failed" if report.passed and watch is not None and watch.has_failed_inside else report.outcome


def _add_section(call: pytest.CallInfo[None], report: pytest.TestReport, record: dict[str, Any]) -> None:
    """Tell what the failure itself, with its causes, does not show."""
    shown = [] if call.excinfo is None else [finding.as_dict() for finding in carried(call.excinfo.value)]
    untold = [finding for finding in record["findings"] if finding not in shown]
    if untold:
        from pytest_nanstab.findings import from_dict
        from pytest_nanstab.reporting.block import render

        report.sections.append(("nanstab", render([from_dict(finding) for finding in untold])))


def end_at_user(node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any]) -> None:
    """Cut the traceback of a stability failure behind the user's innermost line."""
    failure = call.excinfo
    if failure is not None and isinstance(failure.value, StabilityError):
        from pytest_nanstab.reporting.failure import prune

        prune(failure.value, own=str(node.path))
        call.excinfo = prune(failure, own=str(node.path))


def tidy(call: pytest.CallInfo[None]) -> None:
    """Leave only the user's own in the stability errors of a failure: frames of causes, lines in notes."""
    failure = None if call.excinfo is None else call.excinfo.value
    for error in chain(failure):
        if isinstance(error, StabilityError):
            if error is not failure:
                from pytest_nanstab.reporting.failure import prune

                prune(error)
            _drop_own_lines(error)


def _drop_own_lines(error: StabilityError) -> None:
    """Take our own lines out of Hypothesis' "these lines were only run by failing examples": they always are."""
    notes: list[str] = getattr(error, "__notes__", [])
    kept = [note for note in notes if not note.strip().startswith(_PACKAGE)]
    explained = next((number for number, note in enumerate(kept) if note.startswith("Explanation:")), len(kept))
    if len(kept) < len(notes) and not any(_LINE.match(note) for note in kept[explained:]):
        del kept[explained:]
    notes[:] = kept


def _add_margins(record: dict[str, Any]) -> None:
    from pytest_nanstab.reporting import model

    sampled = record["mode"] != "explicit"
    record["margins"] = model.margins(record["run"], record["limits"], headroom=record["headroom"], sampled=sampled)


def _publish(item: pytest.Item, report: pytest.TestReport, record: dict[str, Any]) -> None:
    """Hand measurements and findings to JUnit, and to pytest-html."""
    from pytest_nanstab.reporting import extras

    if record["mode"] == "explicit":
        # The XML takes the properties from the teardown's report, which copies the item's; an item that runs again
        # still has those of the run before.
        others = [entry for entry in item.user_properties if entry[0] not in extras.NAMES]
        item.user_properties[:] = [*others, *extras.properties(record)]
        report.user_properties[:] = item.user_properties
    extra = extras.html_extra(record) if item.config.pluginmanager.hasplugin("html") else None
    if extra is not None:
        report.extras = [*getattr(report, "extras", []), extra]  # type: ignore[attr-defined]


def _wants_lists(settings: Settings, record: dict[str, Any]) -> bool:
    """Four numbers per step of every test in a session would be a burden nobody asked for."""
    return record["run"] is None or record["mode"] == "explicit" or bool(settings.reports)
