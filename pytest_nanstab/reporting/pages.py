"""The way to the HTML pages: what they need is imported only when one is written. Standard library only."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_nanstab.reporting.comparing import Comparison

_NEEDED = ("matplotlib", "jinja2")


def missing(what: str) -> str | None:
    """Why `what` cannot be written here; None when it can. Imports nothing."""
    absent = [name for name in _NEEDED if not _is_there(name)]
    if not absent:
        return None
    return f'{what} needs {" and ".join(absent)}: pip install "pytest-nanstab[report]"'


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # loaded, but without a spec: somebody's stand-in
        return True


def report_page(report: Mapping[str, Any]) -> str:
    """The HTML report of `model.build`'s dictionary."""
    # What the libraries warn about while they load or draw is no affair of a session under -W error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytest_nanstab.reporting import html

        return html.render(report)


def comparison_page(comparison: Comparison, *, everything: bool = False) -> str:
    """The HTML page of a comparison; `everything` opens the list of the tests that are the same everywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytest_nanstab.reporting import html_compare

        return html_compare.render(comparison, everything=everything)
