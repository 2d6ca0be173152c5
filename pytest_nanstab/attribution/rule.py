"""A rule of the table of causes, and the questions that rules share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pytest_nanstab.attribution.case import Case, ancestors

ANY = "any"
PRODUCTS = frozenset({"matmul", "linear", "conv", "scaled_dot_product_attention", "einsum", "bilinear"})
REDUCTIONS = frozenset({"sum", "mean", "norm", "var", "std", "prod", "cumsum", "mse_loss", "layer_norm", "rms_norm"})
LOG_VARIANCE = r"log_?(?:var|sigma|std|scale|sd)|\blv\b|\blogs\b"
IEEE = "IEEE 754"
SLOPE = "the derivative"


@dataclass(frozen=True)
class Rule:
    """What a fault must look like, and what is then said; `ops` empty means any operation.

    Attributes:
        ops: the operations it is about.
        direction: "forward", "backward" or "any".
        fits: whether the evidence supports it.
        cause, remedy: what is said; `{case...}` is filled in.
        source: where it is described.
    """

    ops: frozenset[str]
    direction: str
    fits: Callable[[Case], bool]
    cause: str
    remedy: str
    source: str


def rule(  # noqa: PLR0917 - a row of a table, in the order of its columns
    ops: str, direction: str, fits: Callable[[Case], bool], cause: str, remedy: str, source: str
) -> Rule:
    """A rule for the operations named in `ops`, blanks between them."""
    return Rule(frozenset(ops.split()), direction, fits, cause, remedy, source)


def pytorch(number: int) -> str:
    """An issue of PyTorch's."""
    return f"https://github.com/pytorch/pytorch/issues/{number}"


def always(_: Case) -> bool:
    """A rule that needs no evidence beyond its operation and direction."""
    return True


def is_sum_of(case: Case, name: str) -> bool:
    """Whether the first operand is a sum of what `name` has made."""
    if not case.operands:
        return False
    sums = [made for made in ancestors(case.operands[0].made) if made.op in ("sum", "matmul", "mean", "cumsum")]
    return any(m.op == name for made in sums for o in made.operands for m in ancestors(o))


def sums_before_log(case: Case) -> bool:
    """Whether the values are added up and then given to a logarithm."""
    after = case.after
    return "log" in after and any(name in after[: after.index("log")] for name in ("sum", "matmul", "cumsum", "mean"))


def is_quotient_of_exps(case: Case) -> bool:
    """Whether infinities are divided by infinities later on."""
    quotient = next((made for made in case.origin.path if made.op == "div"), None)
    return quotient is not None and quotient.bad is not None and quotient.bad.kind == "turned"


def is_unscaled_product(case: Case) -> bool:
    """Whether the operand is a product of two computed tensors, as attention scores are, that no number scales."""
    made = case.operands[0].made if case.operands else None
    while made is not None and made.op in ("masked_fill", "where", "add", "clone", "to", "expand"):
        made = next(iter(made.operands), None)
    if made is None or made.op != "matmul" or len(made.operands) < 2:
        return False
    inside = [ancestor for operand in made.operands for ancestor in ancestors(operand, plain=True)]
    return not any(ancestor.op in ("mul", "div") for ancestor in inside)


def cancels(case: Case) -> bool:
    """Whether the operand is a difference of a mean (of squares) and a square."""
    if not case.operands:
        return False
    differences = [made for made in ancestors(case.operands[0].made) if made.op in ("sub", "add")]
    squares = ("pow", "square", "mul")
    return any(
        any(o.op in squares for o in made.operands) and any(o.op in ("mean", "sum", "div") for o in made.operands)
        for made in differences
    )


def integers_before(case: Case) -> bool:
    """Whether the operand was computed in integers."""
    if not case.operands:
        return False
    return any(
        made.dtype.startswith(("int", "uint")) and made.op in ("mul", "pow", "square", "sum", "prod", "add", "cumsum")
        for made in ancestors(case.operands[0].made)
    )


def is_of_squares(case: Case) -> bool:
    """Whether the root is of a sum of squares."""
    sums = [m for o in case.forward.operands for m in ancestors(o) if m.op in ("sum", "add")]
    return any(o.op in ("pow", "square", "mul") for made in sums for o in made.operands)


def is_mask_constant(case: Case) -> bool:
    """Whether one of the operation's plain numbers is as large as those that stand for minus infinity in masks."""
    numbers = [n for n in case.made.numbers if isinstance(n, (int, float)) and not isinstance(n, bool)]
    return any(abs(n) >= 1e4 for n in numbers)


def is_below(value: object, bound: float) -> bool:
    """Whether a plain number is below a bound."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value < bound


def is_nan(value: object) -> bool:
    """Whether a plain number is NaN."""
    return isinstance(value, float) and math.isnan(value)


def is_zero(value: object) -> bool:
    """Whether a plain number is 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0
