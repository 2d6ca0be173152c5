"""Whether an exception is a refusal, and whether it names the place."""

from __future__ import annotations

import re
import traceback
from typing import Any

from pytest_nanstab.attribution.source import is_user_file
from pytest_nanstab.checks import _numbers
from pytest_nanstab.checks._leaves import numeric_leaves
from pytest_nanstab.corruptions.model import Corruption

# What torch, polars and others raise where there is nothing to reduce, or a column of another type: no crash of a
# pipeline, but the library's own refusal.
_OWN_WORDS = (RuntimeError, NotImplementedError, MemoryError)
_EMPTY = re.compile(r"non-zero size|empty|numel\(\) == 0|zero-size", re.IGNORECASE)
_SAMPLING = re.compile(r"/torch/utils/data/")
_EMPTIED = ("rows", "length")
_CODES = ("integer", "sign", "category")


class Refusals:
    """The exceptions that count as a refusal."""

    def __init__(self, raises: Any, *, match_place: bool) -> None:
        given = raises if isinstance(raises, tuple) else (raises,)
        if not given or not all(isinstance(item, type) and issubclass(item, BaseException) for item in given):
            raise TypeError(f"raises must be exception classes, got {raises!r}")
        self.classes: tuple[type[BaseException], ...] = given
        self.match_place = match_place

    def judged(self, error: Exception, corruption: Corruption, policy: str) -> tuple[str, bool]:
        """(words, whether the policy allows it) for what a pipeline raised on a corruption."""
        if not isinstance(error, self.classes):
            own = not corruption.invalid or (corruption.family == "missing" and isinstance(error, RuntimeError))
            if own and is_librarys_own(error, corruption):
                return f"refused ({type(error).__name__})", True
            return f"raised {type(error).__name__}", False
        if corruption.invalid and policy == "sanitize":
            return f"refused ({type(error).__name__}) instead of repaired", False
        if self.match_place and corruption.invalid and not names_place(str(error), corruption):
            return "refused without naming the place", False
        return "refused", True


def is_librarys_own(error: Exception, corruption: Corruption) -> bool:
    """Whether a library refused what is legal and extreme, in its own words; a crash of the user's code is none.

    torch raises RuntimeError where numpy raises ValueError, polars has exceptions of its own, and an index or a key out
    of range is how a lookup refuses a number or a category that it does not know.
    """
    last = _innermost(error)
    if last is not None and is_user_file(last.filename):
        if (last.line or "").lstrip().startswith("raise"):
            return False
    elif corruption.family in _EMPTIED:
        return True
    if isinstance(error, LookupError):
        looked_up = corruption.family in _CODES or (corruption.family == "rows" and _while_sampling(error))
        return looked_up or (isinstance(error, IndexError) and _EMPTY.search(str(error)) is not None)
    home = type(error).__module__.partition(".")[0]
    return isinstance(error, _OWN_WORDS) or home in ("polars", "pandas", "sklearn", "torch", "numpy", "pyarrow")


def _innermost(error: Exception) -> traceback.FrameSummary | None:
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1] if frames else None


def _while_sampling(error: Exception) -> bool:
    """Whether torch was reading a data set: the indices that it was given were made for as many rows as there were."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(_SAMPLING.search(frame.filename.replace("\\", "/")) for frame in frames)


def names_place(message: str, corruption: Corruption) -> bool:
    """Whether a message names a row (counted from 0 or 1), column or field of a corruption; one value has no place."""
    if not corruption.place and not corruption.rows:
        return True
    names = {name for pair in re.findall(r"'([^']+)'|\"([^\"]+)\"", corruption.place) for name in pair if name}
    numbers = {str(row + offset) for row in corruption.rows for offset in (0, 1)}
    numbers |= {number for text in re.findall(r"column \d+|\[[\d, ]+\]", corruption.place) for number in _digits(text)}
    for leaf in numeric_leaves(corruption.value, missing="all"):
        damage = _numbers.damage_of(leaf)
        if damage is not None:
            names |= {leaf.field} - {""}
            numbers |= set(map(str, damage.columns))
    return any(name in message for name in names) or bool(numbers & set(_digits(message)))


def _digits(text: str) -> list[str]:
    return re.findall(r"\d+", text)
