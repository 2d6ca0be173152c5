"""Where operations stop being finite, or stop having a finite derivative: their edges, and how far an operand is away.

The edges are those of IEEE 754 arithmetic and of torch's own derivatives. Operations whose derivative torch defines at
the edge (norm, std and cdist at zero) have none here: they are safe, a division by their result is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.attribution import operations


@dataclass(frozen=True)
class Edge:
    """One edge of one operation.

    Attributes:
        words: how a message calls it: "above 0", "below its overflow".
        distance: of the operand (of both, where the edge is one of two), element by element: positive values, zero or
            negative at and beyond the edge; differentiable.
        step: the smallest positive distance that the dtype can hold; distances are counted in bits from there.
        linear: the distance itself counts (in units of e-folds), not its logarithm: exp and its kin.
    """

    words: str
    distance: Callable[..., Tensor]
    step: Callable[[torch.dtype], float]
    linear: bool = False

    def bits(self, distance: float, dtype: torch.dtype) -> float:
        """How many halvings of the distance, or doublings of the result, are left; 0 at the edge, NaN for NaN."""
        if self.linear:
            return math.nan if math.isnan(distance) else max(distance, 0.0) / math.log(2)
        if distance <= 0:
            return 0.0
        return max(0.0, math.log2(distance / self.step(dtype))) if math.isfinite(distance) else distance

    def level(self, *operands: Tensor) -> Tensor:
        """What the search makes small: differentiable, steep at the edge and not flat far away from it."""
        distance = self.distance(*operands)
        return distance if self.linear else torch.log(distance.clamp(min=torch.finfo(distance.dtype).tiny))


def _subnormal(dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return max(float(info.tiny) * float(info.eps), 5e-324)


def _spacing(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps) / 2


ZERO = Edge("above 0", lambda x: x, _subnormal)
AWAY = Edge("away from 0", torch.abs, _subnormal)
MINUS_ONE = Edge("above -1", lambda x: 1 + x, _spacing)
ONE = Edge("inside -1 and 1", lambda x: 1 - x.abs(), _spacing)
ABOVE_ONE = Edge("above 1", lambda x: x - 1, _spacing)
BETWEEN = Edge("between 0 and 1", lambda x: torch.minimum(x, 1 - x), _spacing)


def _below(factor: float, *, both: bool = False) -> Edge:
    """Operands whose exponential overflows: log(finfo.max) / factor is where."""

    def distance(x: Tensor) -> Tensor:
        limit = math.log(torch.finfo(x.dtype).max)
        return limit - (x.abs() if both else x) * factor

    return Edge("below its overflow", distance, lambda _: 1.0, linear=True)


EXP, EXP2, COSH = _below(1.0), _below(math.log(2)), _below(1.0, both=True)
Operands = list[tuple[tuple[Tensor, ...], Edge]]

# By aten's name: the position of the operand, and its edge.
_SIMPLE: dict[str, tuple[tuple[int, Edge], ...]] = {
    **dict.fromkeys(("log", "log2", "log10", "sqrt", "rsqrt"), ((0, ZERO),)),
    **dict.fromkeys(("reciprocal", "lgamma", "digamma"), ((0, AWAY),)),
    **dict.fromkeys(("div", "divide", "true_divide", "floor_divide", "remainder", "fmod"), ((1, AWAY),)),
    "addcdiv": ((2, AWAY),),
    "log1p": ((0, MINUS_ONE),),
    **dict.fromkeys(("xlogy", "special_xlogy"), ((1, ZERO),)),
    "special_xlog1py": ((1, MINUS_ONE),),
    **dict.fromkeys(("acos", "asin", "atanh", "erfinv", "special_erfinv"), ((0, ONE),)),
    "acosh": ((0, ABOVE_ONE),),
    **dict.fromkeys(("logit", "special_logit"), ((0, BETWEEN),)),
    **dict.fromkeys(("exp", "expm1"), ((0, EXP),)),
    **dict.fromkeys(("exp2", "special_exp2"), ((0, EXP2),)),
    # torch computes its Bessel functions as exp(|x|) times a polynomial, and overflows with the former.
    **dict.fromkeys(("cosh", "sinh", "i0", "special_i1"), ((0, COSH),)),
    "special_entr": ((0, ZERO),),
    "special_ndtri": ((0, BETWEEN),),
}
_MATRICES = frozenset(
    {"linalg_cholesky_ex", "cholesky", "linalg_inv_ex", "inverse", "_linalg_slogdet", "_linalg_det", "_linalg_solve_ex"}
)
_LARGEST_MATRIX = 64


def operands_of(func: Any, args: tuple[Any, ...]) -> Operands:
    """The floating operands of one dispatched call that have an edge, each with its edge; most calls have none."""
    aten = operations.describe(func).aten.rstrip("_")
    simple = _SIMPLE.get(aten)
    if simple is not None:
        return [((args[place],), edge) for place, edge in simple if place < len(args) and _is_float(args[place])]
    if aten == "pow":
        return _of_power(args)
    if aten in ("atan2", "hypot"):
        return _of_pair(args)
    if aten in _MATRICES and _is_float(args[0]) and 0 < args[0].shape[-1] <= _LARGEST_MATRIX:
        return [((args[0],), SINGULAR)]
    return []


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout is torch.strided


def _of_power(args: tuple[Any, ...]) -> Operands:
    base, exponent = args[0], args[1]
    if not isinstance(base, Tensor):
        is_growing = isinstance(base, (int, float)) and base > 1 and _is_float(exponent)
        return [((exponent,), _below(math.log(base)))] if is_growing else []
    if not _is_float(base):
        return []
    if isinstance(exponent, Tensor):
        return [((base,), ZERO)]
    if exponent < 0 or 0 < exponent < 1:  # infinite at zero, or steep there
        return [((base,), AWAY if exponent == int(exponent) else ZERO)]
    return [] if exponent == int(exponent) else [((base,), NOT_NEGATIVE)]


def _of_pair(args: tuple[Any, ...]) -> Operands:
    """Where both arguments vanish there is no direction left."""
    fit = len(args) > 1 and _is_float(args[0]) and _is_float(args[1]) and args[0].shape == args[1].shape
    return [((args[0], args[1]), PAIR)] if fit else []


def _matrix_margin(matrix: Tensor) -> Tensor:
    """The smallest singular value over the largest: zero for a singular matrix."""
    values = torch.linalg.svdvals(matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix)
    margin: Tensor = values[..., -1] / values[..., 0].clamp(min=torch.finfo(values.dtype).tiny)
    return margin


PAIR = Edge("away from 0 in both", lambda x, y: torch.maximum(x.abs(), y.abs()), _subnormal)
# x ** 2.5 is NaN below zero and harmless at zero.
NOT_NEGATIVE = Edge("not negative", lambda x: x + torch.finfo(x.dtype).tiny, _subnormal)
SINGULAR = Edge("away from singular", _matrix_margin, _spacing)
