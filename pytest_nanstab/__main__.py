"""`python -m pytest_nanstab compare a.json b.json ...`: the reports of a matrix run, side by side."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from pytest_nanstab.reporting import pages
from pytest_nanstab.reporting.compared import as_markdown, as_text
from pytest_nanstab.reporting.comparing import ReportFileError, compare, files_of, read
from pytest_nanstab.reporting.model import write_text
from pytest_nanstab.reporting.text import escape

_FORMATS = {".md": as_markdown, ".txt": as_text, ".html": pages.comparison_page}
_EPILOG = (
    "exit status: 0 when every test has the same outcome everywhere it ran (figures may drift), 1 when one has not, "
    "2 when a file is no report or cannot be written"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        comparison = compare([(str(path), read(path)) for given in options.reports for path in files_of(given)])
        if options.output is not None:
            made = _FORMATS[options.output.suffix.lower()]
            write_text(options.output, made(comparison, everything=options.all))
        _print(as_text(comparison, everything=options.all), sys.stdout)
    except ReportFileError as error:
        return _failed(str(error))
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as error:
        return _failed(f"could not write {options.output or 'to stdout'}: {getattr(error, 'strerror', None) or error}")
    return int(comparison.fails)


def _failed(reason: str) -> int:
    _print(f"pytest_nanstab compare: {escape(reason)}\n", sys.stderr)
    return 2


def _print(text: str, stream: TextIO | None) -> None:
    """Write a text; characters that the stream's encoding lacks as escapes."""
    if stream is not None:  # the shell can close it
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pytest_nanstab", description="Reads reports of pytest-nanstab.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "put the JSON reports of several environments into one table, and tell what changed between them"
    command = commands.add_parser("compare", help=text, description=text, epilog=_EPILOG)
    command.add_argument(
        "reports",
        nargs="+",
        metavar="REPORT",
        help="a file that --nanstab-report=PATH.json has written, or a folder of such files",
    )
    command.add_argument("--all", action="store_true", help="list every test, not only those that changed")
    command.add_argument("--output", type=_output, metavar="PATH", help="write it to a file too; .md, .txt or .html")
    return parser


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _FORMATS:
        raise argparse.ArgumentTypeError(f"the ending must be .md, .txt or .html, got {text!r}")
    absent = pages.missing(text) if path.suffix.lower() == ".html" else None
    if absent is not None:
        raise argparse.ArgumentTypeError(absent)
    return path


if __name__ == "__main__":
    sys.exit(main())
