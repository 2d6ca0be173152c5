"""A pytest session on a real pseudo-terminal, and what its screen shows in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

_PIECES = re.compile(r"\x1b7|\x1b8|\x1b\[K|\x1b\[[0-9;]*m|[\r\n\b]|[^\x1b\r\n\b]")
_MOST_SECONDS = 120
_DECIDES = ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "COLUMNS", "LINES", "PYTEST_ADDOPTS", "CI")


def on_terminal(folder: Path, *arguments: str, columns: int = 80, typed: str = "", **variables: str) -> tuple[int, str]:
    """Run pytest there with no plugin but ours and those named with -p; its exit status, and all it has written."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in _DECIDES}
    environment |= {"TERM": "xterm", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1", **variables}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # the same conftest.py with another number, in the same second
    command = [sys.executable, "-m", "pytest", "-p", "nanstab", "-W", "error", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    os.write(master, typed.encode())
    watchdog = threading.Timer(_MOST_SECONDS, process.kill)
    watchdog.start()
    written = b"".join(iter(lambda: _read(master), b""))
    watchdog.cancel()
    os.close(master)
    return process.wait(), written.decode()


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # how Linux says that nobody holds the other end any more
        return b""


def screen(written: str, columns: int = 80) -> list[str]:
    """The lines that a terminal shows after all of it, without colours; refuses sequences it does not know."""
    assert "".join(_PIECES.findall(written)) == written
    lines, row, column, saved = [[" "] * columns], 0, 0, (0, 0)
    for piece in _PIECES.findall(written):
        if piece == "\n" or (len(piece) == 1 and piece >= " " and column == columns):
            row, column = row + 1, 0 if piece != "\n" else column
            lines += [[" "] * columns for _ in range(row + 1 - len(lines))]
        if piece == "\r":
            column = 0
        elif piece == "\b":
            column -= 1
        elif piece == "\x1b7":
            saved = row, column
        elif piece == "\x1b8":
            row, column = saved
        elif piece == "\x1b[K":
            lines[row][column:] = [" "] * (columns - column)
        elif len(piece) == 1 and piece >= " ":
            lines[row][column] = piece
            column += 1
    return ["".join(line).rstrip() for line in lines]
