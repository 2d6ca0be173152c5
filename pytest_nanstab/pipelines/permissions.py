"""Fields that are declared to carry missing values: NaN may come through them, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from pytest_nanstab.checks import _numbers
from pytest_nanstab.checks._leaves import Leaf, numeric_leaves
from pytest_nanstab.corruptions.model import Corruption

_GAPS = re.compile(r"NaN|None|NaT|NA\b|null")


@dataclass(frozen=True)
class Allowance:
    """Where in an output NaN is allowed.

    Attributes:
        patterns: fields in which every NaN is.
        columns: columns of the input that carry missing values, by position; `of` is how many columns there are.
        rows: in outputs that have other columns, the rows that may be missing.
    """

    patterns: tuple[str, ...]
    columns: frozenset[int]
    of: int
    rows: tuple[int, ...]

    def cleared(self, leaf: Leaf) -> Leaf:
        """The leaf with 0 for every NaN that is allowed."""
        if not _numbers.is_float(leaf) or leaf.locate is not None:
            return leaf
        values = leaf.values.detach().cpu().clone() if isinstance(leaf.values, torch.Tensor) else leaf.values.copy()
        missing: Any = values != values  # noqa: PLR0124 - true of NaN only
        where = missing & self._allowed(leaf, missing)
        values[where] = 0
        return replace(leaf, values=values)

    def _allowed(self, leaf: Leaf, missing: Any) -> Any:
        if _matches(leaf.field, self.patterns):
            return True
        allowed = torch.zeros_like(missing) if isinstance(missing, torch.Tensor) else np.zeros_like(missing)
        if len(leaf.shape) == 2 and leaf.shape[1] == self.of:
            allowed[:, sorted(self.columns)] = True
        elif leaf.field and "." not in leaf.field and len(leaf.shape) == 1:
            pass  # another column of a frame
        elif leaf.shape:
            allowed[[row for row in self.rows if row < leaf.shape[0]]] = True
        return allowed


class Permissions:
    """What the user declared, by patterns of field names, and what that says about each corruption."""

    def __init__(self, sample: Any, allow_nan: bool | str | Iterable[str] = (), domain: Any = None) -> None:
        self.patterns = (*_patterns(allow_nan), *_declared("", domain))
        self._names = _columns_of(sample)
        self.clean = self._of_sample(sample) if self.patterns else None

    def allows(self, corruption: Corruption) -> bool:
        """Whether a corruption is a missing value in a field that is declared to carry them."""
        if not self.patterns or not _GAPS.match(corruption.name):
            return False
        names = fields_in(corruption.place)
        return all(_matches(name, self.patterns) for name in names) if names else "*" in self.patterns

    def of(self, corruption: Corruption) -> Allowance | None:
        """What may come out of a corruption; None where nothing may.

        Of a row that is bad in all columns, NaN may stay in those that are declared; what is no number in one of these,
        an infinity or a text, may become NaN.
        """
        if not self.patterns:
            return self.clean
        names = fields_in(corruption.place)
        declared = bool(names) and all(_matches(name, self.patterns) for name in names)
        return self._allowance(corruption.rows if declared or self.allows(corruption) else ())

    def _of_sample(self, sample: Any) -> Allowance | None:
        rows: set[int] = set()
        for leaf in numeric_leaves(sample, missing="all"):
            damage = _numbers.damage_of(leaf, allow_inf=True, limit=10**9)
            if damage is not None and _matches(leaf.field, self.patterns):
                rows |= set(damage.rows)
        return self._allowance(tuple(sorted(rows))) if rows else None

    def _allowance(self, rows: tuple[int, ...]) -> Allowance:
        columns = [at for at, name in enumerate(self._names) if _matches(name, self.patterns)]
        return Allowance(self.patterns, frozenset(columns), len(self._names), rows)


def _patterns(allow_nan: bool | str | Iterable[str]) -> Sequence[str]:
    if isinstance(allow_nan, bool):
        return ["*"] if allow_nan else []
    found = [allow_nan] if isinstance(allow_nan, str) else list(allow_nan)
    wrong = [item for item in found if not isinstance(item, str)]
    if wrong:
        raise TypeError(f"allow_nan must be True, False or names of fields, got {wrong[0]!r}")
    return found


def _declared(path: str, domain: Any) -> list[str]:
    """The dotted paths of a domain's specs that allow NaN."""
    from pytest_nanstab.batches import trees

    if getattr(domain, "allow_nan", False) is True:
        return [path or "*"]
    if not trees.is_node(domain):
        return []
    return [
        name
        for key, child in trees.children(domain)
        for name in _declared(f"{path}.{key}" if path else str(key), child)
    ]


def _columns_of(sample: Any) -> list[str]:
    if hasattr(sample, "columns"):
        return [str(label) for label in sample.columns]
    shape: tuple[int, ...] = tuple(getattr(sample, "shape", ()))
    return [str(at) for at in range(shape[1])] if len(shape) == 2 else []


def fields_in(place: str) -> list[str]:
    """The fields and columns that a place names: by name, or a column of an array by its number."""
    quoted = [name for pair in re.findall(r"'([^']+)'|\"([^\"]+)\"", place) for name in pair if name]
    return quoted or re.findall(r"column (\d+)", place) or re.findall(r"\[\d+, (\d+)\]", place)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
