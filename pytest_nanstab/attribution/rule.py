"""A rule of the table of causes, and the questions that rules share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pytest_nanstab.attribution.case import PLAIN, THROUGH, Case, ancestors, direct
from pytest_nanstab.attribution.history import Made, Operand

ANY = "any"
PRODUCTS = frozenset({"matmul", "linear", "conv", "scaled_dot_product_attention", "einsum", "bilinear"})
REDUCTIONS = frozenset({"sum", "mean", "norm", "var", "std", "prod", "cumsum", "layer_norm", "rms_norm"})
LOSSES = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
NORMS = frozenset({"layer_norm", "rms_norm", "batch_norm", "group_norm"})
LOG_VARIANCE = r"log_?(?:var|sigma|std|scale|sd)|\bln_?var|\blv\b|\blogs\b"
SUMS = frozenset({"sum", "matmul", "mean", "cumsum", "scatter_add", "index_add", "scatter_reduce"})
SQUARES = frozenset({"pow", "square", "mul"})
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
    sums = [made for made in ancestors(case.operands[0].made) if made.op in SUMS]
    return any(m.op == name for made in sums for o in made.operands for m in ancestors(o))


# -- what is done with an exponential ----------------------------------------------------------------------------------


def _steps(case: Case) -> list[Made]:
    """The forward operations between the guilty one and the sink that compute something."""
    moves = PLAIN - {"neg"}
    return [made for made in case.origin.path[1:] if made.op not in moves and made.phase != "backward"]


def is_mask(operand: Operand) -> bool:
    """Whether an operand looks like a mask: bool, or nothing but 0 and 1 at its ends."""
    return operand.dtype == "bool" or (not operand.inf and {operand.low, operand.high} <= {0.0, 1.0})


def _given(made: Made) -> tuple[Operand, ...] | tuple[Made, ...]:
    """What an operation was given: looked at, or as records only where it handed on a NaN."""
    return made.operands if made.bad is None or not made.bad.operands else made.bad.operands


def _adds(made: Made) -> float | None:
    """The plain number that an operation adds; None when it does something else."""
    number = made.numbers[0] if made.numbers else None
    plain = made.op == "add" and len(_given(made)) == 1
    return float(number) if plain and isinstance(number, (int, float)) else None


def _adds_one(made: Made) -> bool:
    others = () if made.op != "add" or made.bad is None else made.bad.operands
    return _adds(made) == 1 or any(operand.low == operand.high == 1 for operand in others)


def is_softplus(case: Case) -> bool:
    """Whether 1 is added to the values, if anything, and the sum is given to a logarithm: nothing else in between."""
    steps = [*_steps(case)[:2]]
    names = [made.op for made in steps]
    return names[:1] == ["log1p"] or (names == ["add", "log"] and _adds_one(steps[0]))


def is_shifted_log(case: Case) -> bool:
    """The same for another number that is added."""
    steps = [*_steps(case)[:2]]
    return [made.op for made in steps] == ["add", "log"] and (_adds(steps[0]) or 0.0) > 0


def _masks(made: Made) -> bool:
    if made.op in ("where", "masked_fill", "masked_select"):
        return True
    given = () if made.bad is None else made.bad.operands
    return made.op == "mul" and len(given) == 2 and any(is_mask(operand) for operand in given)


def is_log_of_sum(case: Case) -> bool:
    """Whether the values are added up, a mask on them at most, and the sum is given to a logarithm."""
    steps = iter(_steps(case))
    made = next(steps, None)
    while made is not None and (_masks(made) or _adds(made) is not None):
        made = next(steps, None)
    if made is None or made.op not in ("sum", "cumsum", "mean"):
        return False
    while made is not None and made.op in ("sum", "cumsum", "mean", "add", "clamp", "clamp_min"):
        made = next(steps, None)
    return made is not None and made.op == "log"


def _quotient(case: Case) -> tuple[Made, Made] | None:
    """Numerator and divisor of the quotient that the infinities come to."""
    quotient = next((made for made in case.origin.path[:4] if made.op == "div" and made.phase != "backward"), None)
    given = () if quotient is None else _given(quotient)
    records = [operand.made if isinstance(operand, Operand) else operand for operand in given]
    if len(records) != 2 or records[0] is None or records[1] is None:
        return None
    return records[0], records[1]


def _is_of_exp(made: Made) -> bool:
    return any(ancestor.op == "exp" for ancestor in ancestors(made))


def _adds_exps(made: Made) -> bool:
    """Whether a record is a sum of exponentials."""
    parts = [operand for operand in made.operands if _is_of_exp(operand)]
    return (made.op in SUMS and bool(parts)) or (made.op == "add" and len(parts) > 1)


def is_softmax_by_hand(case: Case) -> bool:
    """Whether exponentials are divided by a sum of exponentials later on."""
    quotient = _quotient(case)
    if quotient is None:
        return False
    over, under = quotient
    differs = any(made.op == "sub" and len(made.operands) > 1 for made in ancestors(over))  # tanh, by hand
    return _is_of_exp(over) and not differs and any(_adds_exps(made) for made in ancestors(under))


def is_sigmoid_by_hand(case: Case) -> bool:
    """Whether exp(x) is divided by 1 + exp(x) later on."""
    quotient = _quotient(case)
    if quotient is None:
        return False
    over, under = quotient
    return _is_of_exp(over) and under.op == "add" and _adds(under) == 1 and _is_of_exp(under)


def is_followed_by_log(case: Case) -> bool:
    """Whether the quotient of the values is given to a logarithm."""
    names = [made.op for made in _steps(case)]
    return "div" in names and names[names.index("div") + 1 :][:1] == ["log"]


# -- what a zero is made of --------------------------------------------------------------------------------------------


def may_be_masked(case: Case, name: str) -> bool:
    """Whether the zero may be what a mask has left of what `name` has made: nothing, and no underflow."""
    through = THROUGH | SUMS
    behind = list(ancestors(case.made_by(0), through=through))
    if any(operand.bad is not None for made in behind if made.op == name for operand in made.operands):
        return True  # exp and softmax of -inf are meant to be 0
    return any(
        math.prod(made.shape) == 0
        or (_takes_away(made) and any(m.op == name for m in ancestors(made, through=through)))
        for made in behind
    )


def _takes_away(made: Made) -> bool:
    """Whether an operation may leave out values: a selection, or a product with something that nothing computed."""
    if made.op in ("mul", "sub"):
        return not made.numbers and not (len(made.operands) > 1 and all(_is_computed(o) for o in made.operands))
    return made.op in ("where", "masked_fill", "masked_select", "index")


def _is_computed(made: Made) -> bool:
    """Whether a value came out of an operation that makes no zeros to mask with: weights of a mixture, a density."""
    return any(m.op in ("softmax", "sigmoid", "exp", "softplus", "log_softmax") for m in ancestors(made, plain=True))


def is_over_infinity(case: Case) -> bool:
    """Whether the zero is a quotient whose divisor, a sum of exponentials, has overflowed."""
    return any(
        made.op == "div" and any(o.bad is not None and _is_of_sum(o, "exp") for o in made.operands)
        for made in ancestors(case.made_by(0), plain=True)
    )


def _is_of_sum(made: Made, name: str) -> bool:
    return any(ancestor.op == name for ancestor in ancestors(made, through=THROUGH | SUMS))


def is_spread(case: Case) -> bool:
    """Whether the divisor is a standard deviation or a range."""
    return any(
        made.op in ("std", "var", "std_mean", "var_mean") or _is_range(made) or _is_deviation(made)
        for made in direct(case.made_by(1))
    )


def _is_range(made: Made) -> bool:
    names = [{m.op for m in ancestors(operand, plain=True)} for operand in made.operands]
    if made.op != "sub" or not 1 <= len(names) <= 2:
        return False
    return bool(names[0] & {"max", "amax", "aminmax"}) and bool(names[-1] & {"min", "amin", "aminmax"})


def _is_deviation(made: Made) -> bool:
    """Whether it is a sum or mean of squared differences from a mean."""
    return any(
        any(part.op == "mean" for part in difference.operands)
        for difference in (d for square in _squares_in(made) for d in square.operands if d.op == "sub")
    )


def _squares_in(made: Made) -> Iterator[Made]:
    if made.op in ("sum", "mean"):
        yield from (operand for operand in made.operands if operand.op in ("pow", "square"))


def is_norm(case: Case) -> bool:
    """Whether the divisor is a norm, or the root of a sum of squares."""
    by_hand = any(made.op == "sqrt" and _is_root_of_squares(made) for made in direct(case.made_by(1)))
    return by_hand or case.from_(1, "norm")


def _is_root_of_squares(made: Made) -> bool:
    return any(True for below in direct(made) for _ in _squares_in(below))


_ADDED_UP = ("sum", "scatter_add", "index_add", "count_nonzero", "bincount", "numel")


def is_sum(case: Case) -> bool:
    """Whether the divisor is a sum."""
    return any(made.op in _ADDED_UP for made in direct(case.made_by(1)))


def is_count_of_nothing(case: Case) -> bool:
    """Whether the divisor is a sum of ones and zeros: a count, or what a mask leaves."""
    return any(made.op in _ADDED_UP and _counts(made) for made in direct(case.made_by(1)))


def _counts(made: Made) -> bool:
    if made.op in ("count_nonzero", "bincount", "numel") or made.dtype.startswith(("int", "uint")):
        return True
    needed = 1 if made.op == "sum" else 3  # of three, one is the index
    return len(made.operands) >= needed and all(map(_is_count, made.operands))


def _is_count(made: Made) -> bool:
    """Whether a record holds whole numbers or truth values, though their dtype may be floating by now."""
    if made.dtype == "bool" or made.dtype.startswith(("int", "uint")):
        return True
    if made.op in ("ones", "zeros", "ones_like", "zeros_like", "new_ones", "new_zeros"):
        return True
    complement = made.op == "sub" and made.numbers[:1] == (1,) and len(made.operands) == 1
    kept = made.op in ("to", "clone", "copy", "expand", "contiguous") and bool(made.operands)
    both = made.op == "mul" and len(made.operands) == 2 and not made.numbers
    return (complement or kept or both) and all(map(_is_count, made.operands))


# -- other shapes ------------------------------------------------------------------------------------------------------


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
    return any(
        any(o.op in SQUARES for o in made.operands) and any(o.op in ("mean", "sum", "div") for o in made.operands)
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
    return any(o.op in SQUARES for made in sums for o in made.operands)


def is_left_by_square_of(case: Case, name: str) -> bool:
    """Whether the first operand is what the square of a result of `name` leaves of a number: 1 - tanh(x)**2."""
    if not case.operands:
        return False
    steps = list(ancestors(case.operands[0].made, through=THROUGH | SQUARES))
    wanted = ({name}, {"sub", "neg"}, SQUARES)
    return all(any(made.op in ops for made in steps) for ops in wanted)


def is_mask_constant(case: Case) -> bool:
    """Whether a plain number stands for minus infinity: negative, beyond half the dtype's range, and put on a mask."""
    numbers = [n for n in case.made.numbers if isinstance(n, (int, float)) and not isinstance(n, bool)]
    if not any(n < -case.precision / 2 for n in numbers):
        return False
    given = () if case.made.bad is None else case.made.bad.operands
    return case.op != "mul" or any(is_mask(operand) for operand in given)


def squares_overflow(case: Case) -> bool:
    """Whether the squares of what is normalised leave the range of the dtype."""
    return case.overflows and (case.nan or case.largest() ** 2 > case.precision)


def has_negative_variance(case: Case) -> bool:
    """Whether a batch norm in evaluation was given a negative running variance, the last of its operands."""
    low = case.low(len(case.operands) - 1)
    return case.made.numbers[:1] == (False,) and len(case.operands) > 2 and low is not None and low < 0


def is_in_cross_entropy(case: Case) -> bool:
    """Whether an intended infinity met the arithmetic of label smoothing or of soft targets."""
    return case.within == "cross_entropy" and case.origin.intended is not None


def has_class_weights(case: Case) -> bool:
    """Whether a loss over classes was given a weight for each class."""
    floating = [operand for operand in case.operands if operand.dtype.startswith(("float", "bfloat"))]
    return len(floating) > 1


def is_below(value: object, bound: float) -> bool:
    """Whether a plain number is below a bound."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value < bound


def is_nan(value: object) -> bool:
    """Whether a plain number is NaN."""
    return isinstance(value, float) and math.isnan(value)


def is_zero(value: object) -> bool:
    """Whether a plain number is 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def is_infinite(value: object) -> bool:
    """Whether a plain number is infinite."""
    return isinstance(value, float) and math.isinf(value)
