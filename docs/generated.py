"""Parts of the reference that are made from the code itself: between `<!-- generated: NAME -->` and `<!-- end -->`.

They stand in the pages, so that whoever reads those without building them sees them too: `python docs/refresh.py`
writes them.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest_nanstab
from pytest_nanstab import plugin, settings, strategies
from pytest_nanstab.config import LIMIT_HELP
from pytest_nanstab.suite.fixture import Nanstab

_PLACE = re.compile(r"^<!-- generated: (\w+) -->$.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
_METHODS = ("train", "watch", "search", "check_baseline")


class Recorder:
    """Stands in for pytest's parser and group, and keeps what the plugin registers."""

    def __init__(self) -> None:
        self.options: list[tuple[str, dict[str, Any]]] = []
        self.ini: list[tuple[str, str, Any]] = []

    def getgroup(self, name: str, description: str = "") -> Recorder:
        """The group is the recorder itself."""
        return self

    def addoption(self, name: str, **more: Any) -> None:
        """An option of the command line."""
        self.options.append((name, more))

    def addini(self, name: str, help: str, type: str | None = None, default: Any = None) -> None:
        """A key of the configuration file."""
        self.ini.append((name, help, default))


def recorded() -> Recorder:
    """Everything the plugin registers."""
    recorder = Recorder()
    plugin.pytest_addoption(recorder)  # type: ignore[arg-type]
    return recorder


def _options() -> Iterator[str]:
    yield "| option | |\n| --- | --- |"
    for name, more in recorded().options:
        shown = f"{name}={more['metavar']}" if "metavar" in more else name
        yield f"| `{shown}` | {_cell(more['help'])} |"


def _ini() -> Iterator[str]:
    yield "| key | default | |\n| --- | --- | --- |"
    for name, text, default in recorded().ini:
        yield f"| `{name}` | {f'`{default}`' if default else ''} | {_cell(text)} |"


def _limits() -> Iterator[str]:
    yield "| limit | |\n| --- | --- |"
    for name, text in LIMIT_HELP.items():
        yield f"| `{name}` | {_cell(text)} |"


def _marker() -> Iterator[str]:
    signature, _, text = settings.MARKER_HELP.partition("): ")
    yield f"```text\n{signature})\n```\n\n{text[0].upper()}{text[1:]}"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _signatures() -> Iterator[str]:
    """Every public name with its arguments and the first sentence about it, as in a stub file."""
    yield "```text\n# pytest_nanstab"
    for name in pytest_nanstab.__all__:
        yield from _declared(name, getattr(pytest_nanstab, name))
    yield "\n# pytest_nanstab.strategies"
    for name in strategies.__all__:
        yield from _declared(name, getattr(strategies, name))
    yield "\n# the fixture nanstab"
    for name in _METHODS:
        yield from _declared(f"nanstab.{name}", getattr(Nanstab, name))
    yield "```"


def _declared(name: str, thing: Any) -> Iterator[str]:
    arguments = "" if name in ("Run", "Finding") or _is_error(thing) else _arguments(thing)
    about = inspect.getdoc(thing).splitlines()[0]  # type: ignore[union-attr]
    yield f"{name}{arguments}\n{textwrap.fill(about, 90, initial_indent='    # ', subsequent_indent='    # ')}"


def _is_error(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseException)


def _arguments(thing: Any) -> str:
    """The parameters on one line or, where that is too long, one per line; types stand in the docstrings."""
    known = [p for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "function")]
    shown, starred = [], False
    for parameter in known:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown, starred = [*shown, "*"], True
        shown.append(re.sub(r"<class '(\w+)'>", r"\1", str(parameter.replace(annotation=parameter.empty))))
    line = f"({', '.join(shown)})"
    return line if len(line) <= 90 else "(\n    " + ",\n    ".join(shown) + ",\n)"


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "options": _options,
    "ini": _ini,
    "limits": _limits,
    "marker": _marker,
    "signatures": _signatures,
}


def filled(text: str) -> str:
    """A page with what is generated in it."""

    def part(place: re.Match[str]) -> str:
        return "\n".join([f"<!-- generated: {place[1]} -->", "", *TABLES[place[1]](), "", "<!-- end -->"])

    return _PLACE.sub(part, text)
