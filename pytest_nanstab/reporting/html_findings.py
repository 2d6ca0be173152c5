"""Findings as the page shows them: message and place, the block with the user's lines, cause, remedy, what to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from pytest_nanstab.findings import from_dict
from pytest_nanstab.reporting import text
from pytest_nanstab.reporting.block import render
from pytest_nanstab.reporting.tolerant import lines_of, shown

_MOST = 20
_LONGEST = 20_000  # characters of one block
_COMMANDS = ("trace", "again")


@dataclass(frozen=True)
class Told:
    """One finding.

    Attributes:
        message: its first line.
        kind: the stable word for it.
        block: the lines of the user's source and the measurements.
        cause: why, line by line.
        remedy: what to change, line by line.
        command: what to run again; empty where it is not known.
    """

    message: str
    kind: str
    block: Markup
    cause: Sequence[str]
    remedy: Sequence[str]
    command: str


def told(findings: Sequence[Mapping[str, Any]]) -> tuple[list[Told], int]:
    """The first findings of a record, and how many more it has."""
    return [_told(finding) for finding in findings[:_MOST]], max(0, len(findings) - _MOST)


def _told(finding: Mapping[str, Any]) -> Told:
    evidence = finding["evidence"]
    command = next((shown(evidence[name]) for name in _COMMANDS if evidence.get(name)), "")
    return Told(
        message=finding["message"],
        kind=finding["kind"],
        block=_block(finding),
        cause=finding["cause"] or (),
        remedy=finding["remedy"] or (),
        command=command,
    )


def place(finding: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of step, phase, module, operation and line."""
    names = (("step", "step"), ("phase", "phase"), ("module", "module"), ("op", "op"), ("line", "source"))
    return [(word, shown(finding[name])) for word, name in names if finding[name] is not None]


def _block(finding: Mapping[str, Any]) -> Markup:
    """The block without what stands beside it; what cannot be rendered is told as names and values."""
    evidence = {name: value for name, value in finding["evidence"].items() if name not in _COMMANDS}
    bare = {**finding, "evidence": evidence, "cause": None, "remedy": None}
    try:
        lines = render([from_dict(bare)]).split("\n")[2:]
    except Exception:  # noqa: BLE001 - evidence of another version, or made up: no reason to lose the page
        lines = [f"  {shown(name)}  {line}" for name, value in evidence.items() for line in lines_of(value)]
    return pre(lines)


def pre(lines: Sequence[str]) -> Markup:
    """Lines of text, each escaped, marked where it is the guilty one of an excerpt."""
    kept = "\n".join(lines)[:_LONGEST].rstrip("\n").split("\n")
    return Markup("\n").join(_line(text.escape(line)) for line in kept)


def _line(line: str) -> Markup:
    guilty = line.lstrip().startswith("> ") and " | " in line
    return Markup('<mark class="guilty">{}</mark>').format(line) if guilty else escape(line)
