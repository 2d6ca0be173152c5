"""The progress of long runs on a terminal: a note behind pytest's own line that leaves no trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from pytest_nanstab import progress

_SAVE, _RESTORE, _ERASE = "\x1b7", "\x1b8", "\x1b[K"  # the cursor, and the rest of its line
_USUAL_WIDTH = 80


@contextmanager
def showing(config: pytest.Config) -> Iterator[None]:
    """Show how far long runs in the block are, where there is a terminal to show it on."""
    descriptor = _terminal(config)
    if descriptor is None:
        with progress.shown_by(None):
            yield
        return
    note = Note(config, descriptor)
    config.pluginmanager.register(note, "nanstab-note")
    try:
        with progress.shown_by(note):
            yield
    finally:
        config.pluginmanager.unregister(note)
        os.close(descriptor)


def _terminal(config: pytest.Config) -> int | None:
    """A file descriptor of the terminal that stays when pytest captures the output; None where no note is wanted."""
    if not _wants_notes(config):
        return None
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # somebody's object in its place, or none
        return None
    return os.dup(descriptor) if os.isatty(descriptor) else None


def _wants_notes(config: pytest.Config) -> bool:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return (
        sys.platform != "win32"  # where a console may have to be asked to understand escape sequences
        and type(reporter) is pytest.TerminalReporter  # others draw lines of their own
        and reporter.hasmarkup
        and os.environ.get("TERM") != "dumb"
        and config.get_verbosity() > -2
        and config.getoption("capture", "no") in ("fd", "sys")  # else the tests' own output is on the screen
        and not _has_live_logs(config)
    )


def _has_live_logs(config: pytest.Config) -> bool:
    if not config.pluginmanager.hasplugin("logging-plugin"):
        return False
    return config.getoption("log_cli_level") is not None or bool(config.getini("log_cli"))


class Note:
    """Writes what is running behind the cursor, as far as the line has room, and puts the cursor back.

    Args:
        config: knows pytest's terminal writer, which knows where the cursor is.
        descriptor: the terminal.
    """

    def __init__(self, config: pytest.Config, descriptor: int) -> None:
        self._config = config
        self._descriptor = descriptor
        self._is_written = False
        self._is_lost = False

    def __call__(self, stages: Sequence[str]) -> None:
        """Show what is running, outermost first; nothing takes the note away."""
        if self._is_lost:
            return
        try:
            self._show(self._fitting(stages))
        except OSError:
            self._is_lost = True  # the terminal is gone, which is no reason for a test to fail

    def pytest_enter_pdb(self) -> None:
        """Stay silent from now on: the line belongs to the debugger."""
        self._is_lost = True

    def _show(self, text: str) -> None:
        if text:
            self._is_written = True
            marked = self._config.get_terminal_writer().markup(text, light=True)
            self._write(f"{_SAVE}{_ERASE}{marked}{_RESTORE}")
        elif self._is_written:
            self._is_written = False
            self._write(_ERASE)

    def _fitting(self, stages: Sequence[str]) -> str:
        """The longest of the ways to say it that fits."""
        if not stages:
            return ""
        room = self._room()
        ways = (", ".join(stages), stages[-1], stages[-1].partition(", ")[2].partition(",")[0])
        return next((f" {way}" for way in ways if way and len(way) < room), "")

    def _room(self) -> int:
        """Columns from the cursor to the last one, which stays free: behind it terminals disagree."""
        columns = os.get_terminal_size(self._descriptor).columns or _USUAL_WIDTH
        used = self._config.get_terminal_writer().width_of_current_line
        # At a full line the cursor may stand on its last character.
        return columns - used % columns - 1 if used >= 0 and (used % columns or not used) else 0

    def _write(self, text: str) -> None:
        os.write(self._descriptor, text.encode("ascii", "replace"))
