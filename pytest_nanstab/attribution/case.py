"""One fault with its surroundings, as the rules of `causes` ask about it."""

from __future__ import annotations

import linecache
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from pytest_nanstab.attribution.history import Made, Operand
from pytest_nanstab.attribution.operations import of_node
from pytest_nanstab.attribution.origin import Origin, home_of, line_of, operation_of
from pytest_nanstab.attribution.source import is_users_own

# Operations that hand values on as they are, or nearly: what made their operand is what matters.
PLAIN = frozenset(
    {"to", "clone", "copy", "expand", "contiguous", "index", "select", "slice", "gather", "neg", "reshape", "cat"}
    | {"stack", "index_select", "detach", "alias", "squeeze", "unsqueeze", "permute", "diagonal_copy"}
)
THROUGH = PLAIN | {"add", "sub", "mul", "div", "clamp", "clamp_min", "clamp_max", "where", "masked_fill", "dropout"}
THROUGH |= {"relu", "abs", "mean", "masked_select", "unsafe_index"}
_DEPTH = 5


@dataclass(frozen=True)
class Case:
    """A guilty operation, what it was given, and what was before and after it."""

    origin: Origin

    @property
    def made(self) -> Made:
        """The guilty operation."""
        return self.origin.guilty

    @property
    def direction(self) -> str:
        """ "forward", "backward" or "optimizer"; evaluation is forward."""
        phase = self.made.phase
        if phase == "optimizer" and self.made.place.function is not None and is_users_own(self.made.by):
            return "forward"  # the user's own arithmetic
        return phase if phase in ("backward", "optimizer") else "forward"

    @cached_property
    def op(self) -> str:
        """The operation; in the backward pass the one whose derivative it is, unless the user wrote the derivative."""
        made = self.made
        if made.phase != "backward" or not made.place.in_backward:
            return operation_of(made)
        return of_node(made.node or made.op) if made.derivative_of is None else operation_of(made.derivative_of)

    @property
    def forward(self) -> Made:
        """The forward operation: of a derivative, the one it belongs to."""
        return home_of(self.made)

    @property
    def nan(self) -> bool:
        """Whether a NaN came out."""
        return self.made.bad_nan

    @property
    def kind(self) -> str:
        """How it came about; see `history.Kind`."""
        return "" if self.made.bad is None else self.made.bad.kind

    @property
    def operands(self) -> list[Operand]:
        """What the guilty operation was given, masks left out."""
        return [] if self.made.bad is None else [o for o in self.made.bad.operands if o.dtype != "bool"]

    @property
    def within(self) -> str | None:
        """The function of torch.nn.functional that ran the guilty operation."""
        return self.made.place.functional

    @property
    def half(self) -> bool:
        """Whether the result is in half precision."""
        return self.made.dtype in ("float16", "bfloat16")

    @cached_property
    def after(self) -> list[str]:
        """The operations on the way to the sink."""
        return [made.op for made in self.origin.path[1:]]

    @cached_property
    def line(self) -> str:
        """The text of the user's line."""
        spot = line_of(self.made)
        return "" if spot is None else linecache.getline(*spot).strip()

    def at(self, index: int) -> float | None:
        """The value of an operand where the first bad result stands."""
        return self.operands[index].at if index < len(self.operands) else None

    def smallest(self, index: int = 0) -> float | None:
        """The smallest magnitude of an operand."""
        return self.operands[index].smallest if index < len(self.operands) else None

    def low(self, index: int = 0) -> float | None:
        """The smallest finite value of an operand."""
        return self.operands[index].low if index < len(self.operands) else None

    def largest(self, index: int = 0) -> float:
        """The largest finite magnitude of an operand; 0 when there is none."""
        return (self.operands[index].largest or 0.0) if index < len(self.operands) else 0.0

    def made_by(self, index: int) -> Made | None:
        """The record of what made an operand."""
        return self.operands[index].made if index < len(self.operands) else None

    def is_zero(self, index: int = 0) -> bool:
        """Whether an operand is zero where the result is bad; anywhere, when that place is not known."""
        at = self.at(index)
        return at == 0 if at is not None else bool(index < len(self.operands) and self.operands[index].zeros)

    def is_negative(self, index: int = 0) -> bool:
        """The same for negative numbers."""
        at, low = self.at(index), self.low(index)
        return at < 0 if at is not None else low is not None and low < 0

    def number(self, index: int = 0) -> Any:
        """A plain number among the arguments of the forward operation."""
        numbers = self.forward.numbers
        return numbers[index] if index < len(numbers) else None

    def from_(self, index: int, *names: str, plain: bool = False) -> bool:
        """Whether an operand was computed by one of these operations, a few harmless ones in between."""
        if index >= len(self.operands):
            return False
        return any(made.op in names for made in ancestors(self.operands[index].made, plain=plain))

    def forward_from(self, *names: str, plain: bool = False) -> bool:
        """The same for any operand of the forward operation."""
        return any(made.op in names for o in self.forward.operands for made in ancestors(o, plain=plain))

    def gradient_from(self, *names: str) -> bool:
        """In the backward pass: whether the gradient it was handed came out of the derivative of one of these."""
        incoming = [o.made for o in self.operands] + list(self.made.operands)
        steps = [m for made in incoming for m in ancestors(made, plain=True)]
        return any(m.derivative_of is not None and m.derivative_of.op in names for m in steps)

    def leads_to(self, *names: str) -> bool:
        """Whether one of these is on the way to the sink."""
        return any(name in self.after for name in names)

    def said(self, pattern: str) -> bool:
        """Whether the user's line matches a pattern."""
        return re.search(pattern, self.line, re.I) is not None

    @property
    def is_empty(self) -> bool:
        """Whether the first operand has no values at all."""
        return bool(self.operands) and math.prod(self.operands[0].shape) == 0

    @property
    def values_per_result(self) -> float:
        """How many values a reduction makes one of."""
        if not self.operands:
            return math.inf
        return math.prod(self.operands[0].shape) / max(math.prod(self.made.shape), 1)

    @property
    def hidden_forward(self) -> bool:
        """Whether the bad value went no further in the forward pass: only a gradient shows it."""
        return self.made.phase == "forward" and any(made.phase == "backward" for made in self.origin.path)

    @property
    def overflows(self) -> bool:
        """Whether it left the range of its dtype by size alone."""
        return self.made.bad_overflows

    @property
    def precision(self) -> float:
        """The largest number of the result's dtype."""
        kind = getattr(torch, self.made.dtype, torch.float32)
        return torch.finfo(kind).max if kind.is_floating_point else math.inf


def ancestors(
    made: Made | None, *, plain: bool = False, through: frozenset[str] = THROUGH, depth: int = _DEPTH
) -> Iterator[Made]:
    """A record and what it was made of, through operations that hand values on."""
    if made is None:
        return
    yield made
    through = PLAIN if plain else through
    if depth and made.op in through:
        for operand in made.operands:
            yield from ancestors(operand, through=through, depth=depth - 1)


def direct(made: Made | None, depth: int = _DEPTH) -> Iterator[Made]:
    """A record and what it was made of, through operations that keep what it stands for.

    Moves, roots, clamps, and arithmetic with a plain number: a zero after them is a zero, or nearly, before.
    """
    if made is None:
        return
    yield made
    scaled = made.op in ("add", "mul", "div") and len(made.operands) == 1 and bool(made.numbers)
    if depth and (scaled or made.op in PLAIN or made.op in ("sqrt", "clamp", "clamp_min")):
        for operand in made.operands:
            yield from direct(operand, depth - 1)
