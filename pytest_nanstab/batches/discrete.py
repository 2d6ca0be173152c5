"""Integers, class rows, probability rows, masks and lengths: legal and nasty, built vectorised from a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pytest_nanstab.batches import dtypes
from pytest_nanstab.batches.recipe import Array, Made, Recipe, edited, kept, number, rng_of
from pytest_nanstab.batches.spec import SampledSpec, TensorSpec


class Range(NamedTuple):
    """Least and greatest legal int, the one nearest zero, and the label that is skipped."""

    low: int
    high: int
    plain: int
    ignored: int | None = None

    def words(self) -> str:
        """The range, for a message."""
        return f"[{self.low}, {self.high}]"


Build = Callable[[np.random.Generator, tuple[int, ...], Range], Made]


# --- integers and bool


def build_ints(spec: TensorSpec, shape: tuple[int, ...], recipe: Recipe) -> Made:
    """Values of an integer or bool field, as int64."""
    low, high = spec.int_bounds()
    return _ints(_range(low, high, recipe.level, spec.ignore_index), shape, recipe)


def _range(low: int, high: int, level: float, ignored: int | None = None) -> Range:
    plain = min(max(0, low), high)
    if not math.isinf(level):
        low, high = max(low, plain - int(level)), min(high, plain + int(level))
    return Range(low, high, plain, ignored)


def _ints(legal: Range, shape: tuple[int, ...], recipe: Recipe) -> Made:
    made = INTS[recipe.kind](rng_of(recipe.seed), shape, legal)
    return edited(kept(made, recipe.region, legal.plain), recipe.edits)


def _all(value: int, shape: tuple[int, ...], words: str = "") -> Made:
    return Made(np.full(shape, value, dtype=np.int64), f"all {value}{words}")


def _random_ints(rng: np.random.Generator, shape: tuple[int, ...], legal: Range) -> Array:
    return np.asarray(rng.integers(legal.low, legal.high, size=shape, dtype=np.int64, endpoint=True))


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], legal: Range) -> Made:
    return Made(_random_ints(rng, shape, legal), f"uniform in {legal.words()}")


def _one_class(rng: np.random.Generator, shape: tuple[int, ...], legal: Range) -> Made:
    return _all(int(_random_ints(rng, (), legal)), shape)


def _both_ends(rng: np.random.Generator, shape: tuple[int, ...], legal: Range) -> Made:
    array = np.where(rng.random(shape) < 0.5, np.int64(legal.low), np.int64(legal.high))
    return Made(array, f"each value one of {legal.low} and {legal.high}")


def _equal_rows(rng: np.random.Generator, shape: tuple[int, ...], legal: Range) -> Made:
    array = _random_ints(rng, shape, legal)
    if shape:
        array[1:] = array[:1]
    return Made(array, f"uniform in {legal.words()}, all rows equal")


def _some_ignored(rng: np.random.Generator, shape: tuple[int, ...], legal: Range) -> Made:
    array = _random_ints(rng, shape, legal)
    array[rng.random(shape) < 0.5] = legal.ignored
    return Made(array, f"uniform in {legal.words()}, about half ignored ({legal.ignored})")


def _one_not_ignored(rng: np.random.Generator, shape: tuple[int, ...], legal: Range) -> Made:
    array = np.full(shape, legal.ignored, dtype=np.int64)
    if array.size:
        array.reshape(-1)[rng.integers(array.size)] = _random_ints(rng, (), legal)
    return Made(array, f"all but one ignored ({legal.ignored})")


def _all_ignored(_rng: np.random.Generator, shape: tuple[int, ...], legal: Range) -> Made:
    return Made(np.full(shape, legal.ignored, dtype=np.int64), f"all ignored ({legal.ignored})")


INTS: dict[str, Build] = {
    "plain": lambda _rng, shape, legal: _all(legal.plain, shape),
    "lower": lambda _rng, shape, legal: _all(legal.low, shape),
    "upper": lambda _rng, shape, legal: _all(legal.high, shape),
    "one_class": _one_class,
    "both_ends": _both_ends,
    "uniform": _uniform,
    "equal_rows": _equal_rows,
    "some_ignored": _some_ignored,
    "one_not_ignored": _one_not_ignored,
    "all_ignored": _all_ignored,
}
NEEDS_IGNORED = frozenset({"some_ignored", "one_not_ignored", "all_ignored"})
_WEIGHTS = {"uniform": 5}


def int_kinds(spec: TensorSpec) -> tuple[str, ...]:
    """The builders that fit an integer field, simple to strange."""
    names = [name for name in INTS if name not in NEEDS_IGNORED or spec.ignore_index is not None]
    if isinstance(spec, SampledSpec) and not spec.all_ignored:
        names = [name for name in names if name != "all_ignored"]
    return tuple(name for name in names for _ in range(_WEIGHTS.get(name, 1)))


def build_one_hot(_spec: TensorSpec, shape: tuple[int, ...], recipe: Recipe) -> Made:
    """Rows with exactly one 1; the recipe chooses the classes as it chooses integers."""
    classes = _ints(_range(0, shape[-1] - 1, math.inf), shape[:-1], recipe)
    array = np.zeros(shape, dtype=np.float32)
    np.put_along_axis(array, classes.array[..., None], 1.0, axis=-1)
    return Made(array, f"classes {classes.words}")


# --- probabilities


def build_probabilities(spec: TensorSpec, shape: tuple[int, ...], recipe: Recipe) -> Made:
    """Rows that are not negative and sum to 1 as exactly as the dtype can say it."""
    weights, words = PROBABILITIES[recipe.kind](rng_of(recipe.seed), shape)
    return Made(_rows_to_one(weights, spec.dtype), words)


def _rows_to_one(weights: Array, dtype: str) -> Array:
    """Round every share down to the dtype and give the largest of the row what is left: never negative, sum 1."""
    shares = weights / weights.sum(axis=-1, keepdims=True)
    rounded = dtypes.tensor_of(shares, dtype).double().numpy()
    step = 2.0**-7 if dtype == "bfloat16" else float(np.finfo(np.dtype(dtype)).eps)
    # Where rounding went up, one spacing less (or nothing, among the subnormals) is certainly not too much.
    shares = np.where(
        rounded > shares, np.maximum(rounded * (1 - step) - dtypes.smallest_normal(dtype) * step, 0), rounded
    )
    shares = dtypes.tensor_of(shares, dtype).double().numpy()
    largest = shares.argmax(axis=-1, keepdims=True)
    rest = shares.sum(axis=-1, keepdims=True) - np.take_along_axis(shares, largest, axis=-1)
    np.put_along_axis(shares, largest, np.maximum(1 - rest, 0), axis=-1)
    return np.asarray(shares)


def _even(_rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, str]:
    return np.ones(shape), "all classes equally probable"


def _certain(_rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, str]:
    array = np.zeros(shape)
    array[..., 0] = 1
    return array, "class 0 certain, the others exactly 0"


def _certain_random(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, str]:
    array = np.zeros(shape)
    classes = rng.integers(shape[-1], size=(*shape[:-1], 1))
    np.put_along_axis(array, classes, 1.0, axis=-1)
    return array, "a random class certain, the others exactly 0"


def _almost_certain(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, str]:
    array, _ = _certain_random(rng, shape)
    exponent = int(rng.integers(3, 120))
    return array + 2.0**-exponent, f"a random class almost certain, the others about 2**-{exponent}"


def _mixed(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, str]:
    return rng.random(shape) + 1e-9, "random rows"


def _spiky(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, str]:
    logits = rng.standard_normal(shape) * 2.0 ** int(rng.integers(1, 9))
    return np.exp(logits - logits.max(axis=-1, keepdims=True)), "spiky random rows, some entries underflow to 0"


PROBABILITIES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], tuple[Array, str]]] = {
    "even": _even,
    "certain": _certain,
    "certain_random": _certain_random,
    "mixed": _mixed,
    "almost_certain": _almost_certain,
    "spiky": _spiky,
}
PROBABILITY_KINDS = ("even", "certain", "certain_random", "mixed", "mixed", "almost_certain", "spiky", "spiky")


# --- masks


def build_mask(spec: TensorSpec, shape: tuple[int, ...], recipe: Recipe, lengths: Array | None = None) -> Made:
    """Rows of the last dimension with at least min_true True; `lengths` restricts them to the valid positions."""
    width = shape[-1]
    most = width if not isinstance(spec, SampledSpec) or spec.max_true is None else min(spec.max_true, width)
    valid = np.full(shape[:-1], width) if lengths is None else np.broadcast_to(lengths, shape[:-1])
    least_of = np.minimum(spec.min_true, valid)
    most_of = np.maximum(np.minimum(most, valid), least_of)
    rng = rng_of(recipe.seed)
    counts, words = MASKS[recipe.kind](rng, least_of, most_of)
    return Made(_chosen(rng, shape, counts, valid, front=recipe.region != "all"), words)


def _chosen(rng: np.random.Generator, shape: tuple[int, ...], counts: Array, valid: Array, *, front: bool) -> Array:
    """`counts` True in each row: the first ones, or any of the valid ones."""
    positions = np.arange(shape[-1])
    if front or np.array_equal(counts, valid):
        return np.asarray(positions < counts[..., None])
    order = rng.random(shape) + (positions >= valid[..., None])  # invalid positions sort last
    ranks = order.argsort(axis=-1).argsort(axis=-1)
    return np.asarray(ranks < counts[..., None])


def _most(_rng: np.random.Generator, _least: Array, most: Array) -> tuple[Array, str]:
    return most, "every legal entry True"


def _fewest(_rng: np.random.Generator, least: Array, _most_of: Array) -> tuple[Array, str]:
    return least, f"{_spread(least)} True in every row"


def _one_row_fewest(rng: np.random.Generator, least: Array, most: Array) -> tuple[Array, str]:
    counts = most.copy()
    if not counts.size:
        return counts, "empty"
    row = int(rng.integers(counts.size))
    counts.reshape(-1)[row] = least.reshape(-1)[row]
    where = [int(i) for i in np.unravel_index(row, counts.shape)] if counts.ndim else []
    return counts, f"row {where} with {int(least.reshape(-1)[row])} True, the others with {_spread(most)}"


def _one_true(_rng: np.random.Generator, least: Array, most: Array) -> tuple[Array, str]:
    return np.minimum(np.maximum(least, 1), most), "one True in each row (more where more are needed)"


def _random_counts(rng: np.random.Generator, least: Array, most: Array) -> tuple[Array, str]:
    counts = np.asarray(rng.integers(least, most, endpoint=True))
    return counts, f"{_spread(counts)} True in each row, at random"


def _spread(counts: Array) -> str:
    if not counts.size:
        return "no"
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


MASKS: dict[str, Callable[[np.random.Generator, Array, Array], tuple[Array, str]]] = {
    "most": _most,
    "one_row_fewest": _one_row_fewest,
    "fewest": _fewest,
    "one": _one_true,
    "random": _random_counts,
}
MASK_KINDS = ("most", "one_row_fewest", "fewest", "one", "random", "random", "random")


# --- lengths


def build_lengths(shape: tuple[int, ...], recipe: Recipe, low: int, high: int) -> Made:
    """Numbers of valid positions in [low, high], as int64."""
    rng = rng_of(recipe.seed)
    array = np.full(shape, high if recipe.kind in ("longest", "one_shortest") else low, dtype=np.int64)
    if recipe.kind == "mixed":
        array = np.asarray(rng.integers(low, high, size=shape, dtype=np.int64, endpoint=True))
        return Made(array, f"mixed, {low} to {high}")
    if recipe.kind in ("longest", "shortest") or not array.size:
        return Made(array, f"all {recipe.kind} ({number(high if recipe.kind == 'longest' else low)})")
    flat = int(rng.integers(array.size))
    array.reshape(-1)[flat] = low if recipe.kind == "one_shortest" else high
    index = [int(i) for i in np.unravel_index(flat, shape)] if shape else []
    value, rest = (low, high) if recipe.kind == "one_shortest" else (high, low)
    return Made(array, f"{value} at {index}, all others {rest}")


LENGTH_KINDS = ("longest", "shortest", "one_shortest", "one_longest", "mixed", "mixed")
