"""Small training programs with a numerical bug that ordinary data does not show, each with its mended twin.

A program is a function `name(fixed)` that returns a `TrainingSetup`. In the source, the operation that fails stands on
a line that ends in `# bug: name`; several lines may be marked when the fault may surface on any of them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

from pytest_nanstab import TrainingSetup

_MARK = re.compile(r"#\s*bug: (\w+)")
PROGRAMS: list[Program] = []


@dataclass(frozen=True)
class Program:
    """One pair of programs.

    Attributes:
        name: of the function.
        family: what kind of model it is.
        make: `make(fixed)` builds the setup; the caller has seeded torch.
        file: where it is written.
        lines: the lines that may be named as the origin.
    """

    name: str
    family: str
    make: Callable[[bool], TrainingSetup]
    file: str
    lines: frozenset[int]


def program(family: str) -> Callable[[Callable[[bool], TrainingSetup]], Callable[[bool], TrainingSetup]]:
    """Register a pair."""

    def register(make: Callable[[bool], TrainingSetup]) -> Callable[[bool], TrainingSetup]:
        file = inspect.getsourcefile(make) or ""
        with open(file, encoding="utf-8") as source:
            marks = [(number, _MARK.search(line)) for number, line in enumerate(source, start=1)]
        name = make.__name__
        lines = frozenset(number for number, mark in marks if mark is not None and mark[1] == name)
        assert lines, f"{name} has no line marked '# bug: {name}'"
        PROGRAMS.append(Program(name, family, make, file, lines))
        return make

    return register


from . import (  # noqa: E402
    classifiers,
    formulas,
    generative,
    geometry,
    language,
    likelihoods,
    probabilistic,
    scripts,
    structured,
    vision,
)

__all__ = [
    "PROGRAMS",
    "Program",
    "classifiers",
    "formulas",
    "generative",
    "geometry",
    "language", "likelihoods",
    "probabilistic",
    "program",
    "scripts",
    "structured",
    "vision",
]  # fmt: skip
