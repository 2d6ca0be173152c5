"""What an operation was given when its result went bad, in words: the lines below "op" in the failure block."""

from __future__ import annotations

import math
from typing import Any

import torch

from pytest_nanstab.attribution.history import Made, Operand

_SIGNS = {"div": "/", "true_divide": "/", "mul": "*", "sub": "-", "add": "+", "pow": "**"}
# Operations whose edge is 1 or -1: four digits would not show on which side of it a number lies.
_EDGE_AT_ONE = frozenset({"acos", "asin", "atanh", "acosh", "log1p"})
# Operations on several tensors that work value by value.
_ELEMENTWISE = frozenset(
    {"binary_cross_entropy", "binary_cross_entropy_with_logits", "atan2", "lerp", "addcmul", "addcdiv", "clamp"}
    | {"where", "hypot", "logaddexp", "fmod", "remainder"}
)
_PRODUCTS = frozenset({"matmul", "linear", "conv", "scaled_dot_product_attention", "bilinear", "einsum"})
# The functions whose result leaves a dtype at a known argument: log, log2 ... of its largest number.
_INVERSE = {
    "exp": math.log,
    "exp2": math.log2,
    "expm1": math.log,
    "cosh": lambda top: math.log(top) + math.log(2),
    "sinh": lambda top: math.log(top) + math.log(2),
    "square": math.sqrt,
}


def details_of(made: Made) -> list[str]:
    """One or two lines about the operands of a bad result; none where they say nothing."""
    if made.bad is None:
        return []
    operands = [operand for operand in made.bad.operands if operand.dtype != "bool"]
    if not operands:
        return []
    edge = _at_the_edge(made, operands)
    said = edge is not None and edge.startswith("largest finite input")
    lines = [edge, *([] if said else _ranges(made, operands))]
    return [line for line in lines if line]


def largest_of(dtype: str) -> float | None:
    """The largest finite number of a floating dtype by name."""
    kind = getattr(torch, dtype, None)
    return torch.finfo(kind).max if isinstance(kind, torch.dtype) and kind.is_floating_point else None


def edge_of(op: str, dtype: str) -> float | None:
    """The argument above which a function leaves a dtype's range."""
    top = largest_of(dtype)
    if top is None or op not in _INVERSE:
        return None
    return float(_INVERSE[op](min(top, 1.7e308)))


def _at_the_edge(made: Made, operands: list[Operand]) -> str | None:
    """What happened at the first bad value."""
    edge = edge_of(made.op, operands[0].dtype)
    largest = operands[0].largest
    if edge is not None and largest is not None and not made.bad_nan:
        return f"largest finite input {largest:.4g}, {made.op} overflows {operands[0].dtype} above {edge:.4g}"
    pair = _pair(made, operands)
    if pair is not None:
        return pair
    if math.prod(operands[0].shape) == 0:
        return f"{made.op} of an empty tensor, {operands[0].dtype}{list(operands[0].shape)}"
    if operands[0].at is not None and operands[0].shape and _is_the_input(made, operands):
        return f"the input is {_value(made, operands[0].at)} there"
    return None


def _pair(made: Made, operands: list[Operand]) -> str | None:
    """The two values that met where the first bad result stands."""
    first, second = operands[0].at, operands[1].at if len(operands) > 1 else None
    if first is None:
        return None
    result = "nan" if made.bad_nan else "inf"
    if made.op in ("xlogy", "xlog1py") and second is not None:
        return f"{made.op}({first:.4g}, {second:.4g}) gave {result} there"
    if made.op not in _SIGNS:
        return None
    if made.aten.startswith("rsub"):
        first, second = second, first
    left, right = ("" if value is None else f"{value:.4g}" for value in (first, second))
    number = _plain(made.numbers[0]) if made.numbers else ""
    left, right = left or number, right or number
    if not left or not right:
        return None
    gave = f" gave {result}" if len(operands) > 1 else ""
    return f"{left} {_SIGNS[made.op]} {right}{_alpha(made, operands)}{gave} there"


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _alpha(made: Made, operands: list[Operand]) -> str:
    """The factor of the second operand, where an addition of two tensors was given one."""
    numbers = made.numbers if made.op in ("add", "sub") and len(operands) > 1 else made.numbers[1:]
    factor = numbers[0] if made.op in ("add", "sub") and numbers else 1
    return "" if factor == 1 else f" * {_plain(factor)}"


def _is_the_input(made: Made, operands: list[Operand]) -> bool:
    """Whether the first operand is what the result was computed from, value by value."""
    floating = [operand for operand in operands if operand.dtype.startswith(("float", "bfloat", "complex"))]
    if floating == operands[:1]:
        return True
    return made.op in _ELEMENTWISE and operands[0].shape == made.shape


def _value(made: Made, value: float) -> str:
    """A value in four digits, or in as many as tell it from the edge at 1 or -1."""
    if made.op not in _EDGE_AT_ONE or abs(value) == 1 or abs(abs(value) - 1) > 1e-3:
        return f"{value:.4g}"
    return next(text for digits in range(9, 18) if abs(float(text := f"{value:.{digits}g}")) != 1)


def _ranges(made: Made, operands: list[Operand]) -> list[str]:
    top = largest_of(made.dtype)
    known = [operand for operand in operands if operand.low is not None or operand.inf or operand.nan][:3]
    if made.bad_overflows or (made.op in _PRODUCTS and not any(operand.inf or operand.nan for operand in known)):
        sizes = " and ".join(
            f"{operand.largest:.4g}{_already(operand)}" for operand in known if operand.largest is not None
        )
        if sizes and top is not None:
            return [f"operands up to {sizes}, {made.dtype} ends at {top:.4g}"]
    numbers = [""] if len(known) == 1 else [f"{number}: " for number in range(1, len(known) + 1)]
    return [f"operand {number}{_range(made, operand)}" for number, operand in zip(numbers, known, strict=True)]


def _already(operand: Operand) -> str:
    return f" ({operand.inf} already inf)" if operand.inf else ""


def _range(made: Made, operand: Operand) -> str:
    bad = ", ".join(f"{count} {word}" for count, word in ((operand.nan, "NaN"), (operand.inf, "inf")) if count)
    zeros = f", {operand.zeros} zeros" if operand.zeros and operand.low != operand.high else ""
    ends = [_value(made, end) for end in (operand.low, operand.high) if end is not None]
    shown = " to ".join(ends[:1] if operand.low == operand.high else ends)
    return f"{operand.dtype}{list(operand.shape)} {' and '.join(filter(None, [shown + zeros, bad]))}"
