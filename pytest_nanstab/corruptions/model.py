"""What a corruption is: made at once for those who draw one, described only for those who may want it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# What is wrong with the data, which says what a finding may advise.
Family = Literal[
    "nonfinite",  # NaN and the infinities
    "missing",  # None, NaT, NA
    "magnitude",  # finite, and too large for something
    "constant",  # a column without spread
    "sign",  # zero or negative where all was positive
    "integer",  # whole numbers that narrower types cannot hold
    "number text",  # texts in a column of numbers
    "rows",  # no row, one row
    "index",  # labels that repeat, or that have gaps
    "text",  # characters and bytes
    "category",  # a word that was not there before
    "image",  # black, white, on another scale
    "length",  # a sequence of length 0
    "own",  # what a user made
]


@dataclass(frozen=True)
class Corruption:
    """One corrupted copy of a sample.

    Attributes:
        name: what was put in: "NaN", "+Inf", "1e39 (beyond float32)", "None", "lone surrogate", "empty batch", ...
        place: where, in words: 'column 3', 'element [4, 7] of "image"'; "" when the whole sample is one value.
        invalid: True for what is no value at all (NaN, Inf, missing, text that no encoder accepts): it must be refused
            or repaired. False for a legal but extreme value: it must be refused or lead to finite output.
        value: the corrupted sample; the original is never touched and shares no memory with it.
        rows: 0-based indices along the first dimension that hold the corruption; () where there are no rows.
        family: what kind of fault it is, "nonfinite" or "text" for example.
    """

    name: str
    place: str
    invalid: bool
    value: Any
    rows: tuple[int, ...] = ()
    family: Family = "own"


@dataclass(frozen=True)
class Recipe:
    """A corruption that is not made yet: a large sample is copied once at a time, not a hundred times at once."""

    name: str
    place: str
    invalid: bool
    make: Callable[[], Any] = field(repr=False)
    rows: Sequence[int] = field(default=(), repr=False)
    family: Family = field(default="own", repr=False)

    def made(self) -> Corruption:
        """The corruption with a copy of the sample of its own."""
        return Corruption(self.name, self.place, self.invalid, self.make(), tuple(self.rows), self.family)

    def within(self, make: Callable[[Any], Any], place: str, rows: Sequence[int]) -> Recipe:
        """The same inside a larger sample, which `make` builds around the corrupted part."""
        part = self.make
        return replace(self, make=lambda: make(part()), place=place, rows=rows)
