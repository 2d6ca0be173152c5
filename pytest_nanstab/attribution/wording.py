"""What an operation was given when its result went bad, in words: the lines below "op" in the failure block."""

from __future__ import annotations

import math

import torch

from pytest_nanstab.attribution.history import Made, Operand

_SIGNS = {"div": "/", "true_divide": "/", "mul": "*", "sub": "-", "add": "+", "pow": "**"}
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
    if made.op in _SIGNS and len(operands) > 1 and operands[0].at is not None and operands[1].at is not None:
        result = "nan" if made.bad_nan else "inf"
        return f"{operands[0].at:.4g} {_SIGNS[made.op]} {operands[1].at:.4g} gave {result} there"
    if made.op in _SIGNS and operands[0].at is not None and made.numbers:
        return f"{operands[0].at:.4g} {_SIGNS[made.op]} {made.numbers[0]} there"
    if math.prod(operands[0].shape) == 0:
        return f"{made.op} of an empty tensor, {operands[0].dtype}{list(operands[0].shape)}"
    if operands[0].at is not None and operands[0].shape:
        return f"input {operands[0].at:.4g} there"
    return None


def _ranges(made: Made, operands: list[Operand]) -> list[str]:
    top = largest_of(made.dtype)
    known = [operand for operand in operands if operand.low is not None][:3]
    if made.op in _PRODUCTS or made.bad_overflows:
        sizes = " and ".join(f"{operand.largest:.4g}" for operand in known if operand.largest is not None)
        if sizes and top is not None:
            return [f"operands up to {sizes}, {made.dtype} ends at {top:.4g}"]
    return [f"operand {_number(known, operand)}{_range(operand)}" for operand in known]


def _number(known: list[Operand], operand: Operand) -> str:
    return "" if len(known) == 1 else f"{known.index(operand) + 1}: "


def _range(operand: Operand) -> str:
    bad = ", ".join(f"{count} {word}" for count, word in ((operand.nan, "NaN"), (operand.inf, "inf")) if count)
    zeros = f", {operand.zeros} zeros" if operand.zeros and operand.low != operand.high else ""
    rest = f" and {bad}" if bad else ""
    shown = f"{operand.low:.4g}" if operand.low == operand.high else f"{operand.low:.4g} to {operand.high:.4g}"
    return f"{operand.dtype}{list(operand.shape)} {shown}{zeros}{rest}"
