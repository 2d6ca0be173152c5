"""Gathers the test records that ride on reports, in the process that prints and writes. Loaded in every session."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pytest_nanstab.ranks.place import is_first
from pytest_nanstab.settings import SETTINGS

_WORKER_KEY = "nanstab_environment"


class Collector:
    """Gathers the records that ride on reports; registered in the process that prints and writes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._settings = config.stash[SETTINGS]
        self._records: dict[str, dict[str, Any]] = {}
        self._workers: list[dict[str, Any]] = []
        self._written: list[str] = []
        self._failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a test's record; a rerun replaces the one before."""
        record = getattr(report, "nanstab", None)
        if record is not None:
            self._records[record["id"]] = record

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Keep what an xdist worker says about its environment: this process may never have imported torch."""
        environment = getattr(node, "workeroutput", {}).get(_WORKER_KEY)
        if environment is not None:
            self._workers.append(environment)

    def pytest_sessionfinish(self) -> None:
        """Write the reports."""
        if not self._settings.reports or self._config.getoption("collectonly") or not is_first():
            return
        from pytest_nanstab.reporting import model

        report = model.build(self._records.values(), self._environment())
        for path in self._settings.reports:
            self._write(path, report)

    def _write(self, path: str, report: dict[str, Any]) -> None:
        try:
            _write_report(path, report)
        except (OSError, ImportError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            self._failed.append(f"could not write nanstab report {path}: {reason}")
        else:
            self._written.append(f"nanstab report: {path}")

    def _environment(self) -> dict[str, Any]:
        from pytest_nanstab.reporting import model

        own = model.environment(self._config)
        told = next((environment for environment in self._workers if environment["devices"]), {})
        return {**own, **told, "args": own["args"]}

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the section, and where the reports are."""
        if self._records and is_first():
            from pytest_nanstab.reporting.terminal import write_summary

            write_summary(terminalreporter, list(self._records.values()), headroom=self._settings.headroom)
        if not self._written and not self._failed:
            return
        from pytest_nanstab.reporting.text import escape

        for line in self._written:
            terminalreporter.write_line(escape(line))
        for line in self._failed:
            terminalreporter.write_line(escape(line), red=True, bold=True)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Of several ranks, let the one that reports end first."""
        if "pytest_nanstab.ranks.group" in sys.modules:
            from pytest_nanstab.ranks.group import leave_together

            leave_together()


def _write_report(path: str, report: dict[str, Any]) -> None:
    from pytest_nanstab.reporting import events, markdown, model, pages

    wanted = model.report_format(path)
    if wanted == "tensorboard":
        events.write(path, report)
    else:
        renderers = {"md": markdown.render, "html": pages.report_page, "json": model.json_text}
        model.write_text(path, renderers[wanted](report))


class Messenger:
    """Tells the controller about the environment of an xdist worker; registered in workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_sessionfinish(self) -> None:
        """Send it with the worker's last message."""
        if self._config.stash[SETTINGS].reports:
            from pytest_nanstab.reporting import model

            output: dict[str, Any] = self._config.workeroutput  # type: ignore[attr-defined]
            output[_WORKER_KEY] = model.environment(self._config)
