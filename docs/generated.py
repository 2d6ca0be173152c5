"""Tables of the reference that are made from the code itself, where a page says `<!-- generated: NAME -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pytest_nanstab import plugin, settings
from pytest_nanstab.config import LIMIT_HELP

_PLACE = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


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


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "options": _options,
    "ini": _ini,
    "limits": _limits,
    "marker": _marker,
}


def filled(text: str) -> str:
    """A page with its tables."""
    return _PLACE.sub(lambda place: "\n".join(TABLES[place[1]]()), text)


def setup(app: Any) -> dict[str, bool]:
    """Fill the tables of every page that is read."""

    def fill(app: Any, docname: str, source: list[str]) -> None:
        source[0] = filled(source[0])

    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
