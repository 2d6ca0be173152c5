"""The pytest hooks. Standard library and pytest only: nothing here may import torch, numpy or hypothesis."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nanstab import settings as settings_module
from pytest_nanstab.errors import StabilityError
from pytest_nanstab.findings import jsonable
from pytest_nanstab.items import WATCH, ItemWatch, limits_data
from pytest_nanstab.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from pytest_nanstab.suite.fixture import Nanstab

_RECORDS = pytest.StashKey[dict[str, dict[str, Any]]]()
_SUITE = "__nanstab_suite__"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options and the ini keys."""
    group = parser.getgroup("nanstab", "numerical stability (pytest-nanstab)")
    group.addoption(
        "--nanstab",
        action="store_true",
        help="watch every test that uses torch; one that trains on NaN or Inf, or makes NaN out of finite input, fails "
        "even if its own assertions miss it (the same as -o nanstab=all)",
    )
    group.addoption(
        "--nanstab-report",
        action="append",
        metavar="PATH",
        help="write a report of all checked and watched tests; the ending gives the format (.json); may be repeated",
    )
    group.addoption(
        "--nanstab-headroom",
        type=settings_module.headroom_number,
        default=None,
        metavar="N",
        help="list the N tests nearest to a limit or to overflow, 0 for all (default: those under 4 bits)",
    )
    settings_module.add_ini(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings; wrong ones are a usage error before anything is collected."""
    config.addinivalue_line("markers", settings_module.MARKER_HELP)
    config.stash[SETTINGS] = settings_module.read(config)
    config.stash[_RECORDS] = {}
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Collector(config), "nanstab-collector")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is watched, unless that is the default."""
    mode = config.stash[SETTINGS].mode
    return None if mode == "explicit" else f"nanstab: {mode}"


@pytest.hookimpl(tryfirst=True)  # the suite's own parameter comes first in the id, before the user's
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Expand a suite into its items."""
    if hasattr(metafunc.function, _SUITE):
        from pytest_nanstab.suite import expand

        expand.generate(metafunc)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the users of the fixture, so that -m selects them, and check every marker before any test runs."""
    settings = config.stash[SETTINGS]
    for item in items:
        if "nanstab" in getattr(item, "fixturenames", ()) and item.get_closest_marker("nanstab") is None:
            item.add_marker("nanstab")
        if item.get_closest_marker("nanstab") is None:
            continue
        settings_module.of_item(item, settings)
        if settings.mode == "off":
            item.add_marker(pytest.mark.skip(reason="nanstab is off"))


def _is_suite(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "obj", None), _SUITE)


def _watch_of(item: pytest.Item) -> ItemWatch | None:
    settings: Settings = item.config.stash[SETTINGS]
    if _is_suite(item):
        return None
    if item.get_closest_marker("nanstab") is not None:
        return ItemWatch(item, "explicit", settings_module.of_item(item, settings))
    if settings.mode in ("all", "report"):
        mode = "watched" if settings.mode == "all" else "report"
        return ItemWatch(item, mode, settings_module.ItemSettings({}))
    return None


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the call phase; a verdict is raised here, so that xfail, reruns and reports see an ordinary failure."""
    __tracebackhide__ = True
    watch = _watch_of(item)
    if watch is None:
        if _is_suite(item):
            from pytest_nanstab.suite import expand

            expand.refuse_unexpanded(item)
        return (yield)
    item.stash[WATCH] = watch
    watch.begin()
    try:
        result = yield
    except Exception as error:
        watch.abandon()
        watch.conclude(error)
        raise
    finally:
        watch.abandon()
    watch.conclude(None)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a suite's case in place of the bare factory."""
    __tracebackhide__ = True
    if not _is_suite(pyfuncitem):
        return None
    from pytest_nanstab.suite import expand

    settings = pyfuncitem.config.stash[SETTINGS]
    inherited = settings_module.of_item(pyfuncitem, settings).limits
    return expand.run_item(pyfuncitem, inherited, device=settings.device) or None


@pytest.fixture
def nanstab(request: pytest.FixtureRequest) -> Nanstab:
    """Train and watch with checks: `nanstab.train(setup, steps=50)` returns the `Run`; see the README.

    A test that uses it is an explicit stability test: its own loops are checked too, and it carries the marker
    `nanstab`.
    """
    from pytest_nanstab.suite.fixture import Nanstab

    settings = request.config.stash[SETTINGS]
    limits = settings_module.of_item(request.node, settings).limits
    return Nanstab(limits=limits, device=settings.device)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give a stability failure its block, and let the test's record ride on the report."""
    report = yield
    if call.when == "call":
        record = _record_of(item)
        if record is not None:
            _decorate(item, call, report, record)
        elif call.excinfo is not None and isinstance(call.excinfo.value, StabilityError):
            _show_block(item, call.excinfo, report)
    return report


def _record_of(item: pytest.Item) -> dict[str, Any] | None:
    watch = item.stash.get(WATCH, None)
    if watch is not None:
        return watch.record()
    if not _is_suite(item):
        return None
    from pytest_nanstab.suite.expand import RECORD

    case = item.stash.get(RECORD, None)
    if case is None:
        return None
    return {
        "mode": "explicit",
        "check": case.check,
        "precision": case.precision,
        "seed": case.seed,
        "limits": limits_data(case.limits),
        "run": None if case.run is None else case.run.as_dict(),
        "headroom": {} if case.run is None else case.run.headroom,
        "init_scale": case.init_scale,
        "findings": [finding.as_dict() for finding in case.findings],
        "used_torch": True,
    }


def _decorate(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, record: dict[str, Any]
) -> None:
    from pytest_nanstab.reporting import extras, model

    stability = call.excinfo is not None and isinstance(call.excinfo.value, StabilityError)
    if call.excinfo is not None and stability:
        _show_block(item, call.excinfo, report)
    elif record["findings"]:
        _add_section(report, record)
    record["margins"] = model.margins(record["run"], record["limits"], headroom=record["headroom"])
    full = {"id": item.nodeid, **record, "outcome": _outcome(report)}
    report.nanstab = jsonable(full)  # type: ignore[attr-defined]
    report.user_properties.extend(extras.properties(full))
    extra = extras.html_extra(full)
    if extra is not None and item.config.pluginmanager.hasplugin("html"):
        report.extras = [*getattr(report, "extras", []), extra]  # type: ignore[attr-defined]


def _show_block(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException], report: pytest.TestReport) -> None:
    from pytest_nanstab.reporting import failure

    report.longrepr = failure.longrepr(item, excinfo)


def _add_section(report: pytest.TestReport, record: dict[str, Any]) -> None:
    from pytest_nanstab.findings import from_dict
    from pytest_nanstab.reporting.block import render

    report.sections.append(("nanstab", render([from_dict(finding) for finding in record["findings"]])))


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.outcome == "skipped" else "xpassed"
    return report.outcome


class _Collector:
    """Gathers the records that ride on reports; registered in the process that prints and writes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = getattr(report, "nanstab", None)
        if record is not None:
            self._config.stash[_RECORDS][record["id"]] = record

    def pytest_sessionfinish(self) -> None:
        settings = self._config.stash[SETTINGS]
        if settings.reports:
            from pytest_nanstab.reporting import model

            report = model.build(self._config.stash[_RECORDS].values(), model.environment(self._config))
            for path in settings.reports:
                model.write_json(path, report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        records = list(self._config.stash[_RECORDS].values())
        if records:
            from pytest_nanstab.reporting.terminal import write_summary

            write_summary(terminalreporter, records, headroom=self._config.stash[SETTINGS].headroom)
