"""Float and complex values: legal and nasty, built vectorised from a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_nanstab.batches import dtypes
from pytest_nanstab.batches.recipe import Array, Made, Recipe, edited, index_of, kept, number, rng_of
from pytest_nanstab.batches.spec import TensorSpec


@dataclass(frozen=True)
class Window:
    """Where values may lie and what the dtype does there; all numbers are exact in the dtype.

    Attributes:
        low, high: the window the recipe's level leaves of the legal range.
        plain: the legal value nearest zero.
        tiny: the smallest normal number of the dtype.
        eps: its relative spacing.
        dtype: the numpy dtype of the computation.
    """

    low: float
    high: float
    plain: float
    tiny: float
    eps: float
    dtype: type[np.float32] | type[np.float64]

    @property
    def far(self) -> float:
        """The end that lies farther from zero."""
        return self.high if abs(self.high) >= abs(self.low) else self.low

    def words(self) -> str:
        """The window, for a message."""
        return f"[{number(self.low)}, {number(self.high)}]"


Floats = npt.NDArray[np.floating[Any]]
Build = Callable[[np.random.Generator, tuple[int, ...], Window], Made]


def build(spec: TensorSpec, shape: tuple[int, ...], recipe: Recipe) -> Made:
    """Values of a float or complex field; complex ones as (..., 2) parts.

    Nothing but an allowed NaN or infinity leaves the field's bounds: they are numbers of the dtype, values are
    clipped to them in a wider dtype, and rounding keeps order.
    """
    low, high = spec.float_bounds()
    window = window_of(spec, recipe.level)
    parts = (*shape, 2) if spec.family == "complex" else shape
    with np.errstate(all="ignore"):
        built = BUILDERS[recipe.kind](rng_of(recipe.seed), parts, window)
        # Arithmetic on arrays without dimensions gives numpy scalars, which cannot be written into.
        made = Made(np.asarray(built.array), built.words)
        np.clip(made.array, window.low, window.high, out=made.array)
        if recipe.kind == "nonfinite":
            made = _with_nonfinite(made, recipe.seed, spec)
        made = edited(kept(made, recipe.region, window.plain), recipe.edits)
    if not spec.allow_subnormal:
        _drop_subnormals(made.array, window, low, high)
    return made


def window_of(spec: TensorSpec, level: float) -> Window:
    """The part of the legal range within `level` of the value nearest zero."""
    low, high = spec.float_bounds()
    plain = min(max(0.0, low), high)
    near, far = max(low, plain - level), min(high, plain + level)
    inner = dtypes.float_bounds(spec.dtype, near, far, subnormal=spec.allow_subnormal)
    info = np.finfo(np.float16) if spec.dtype == "float16" else np.finfo(dtypes.work_dtype(spec.dtype))
    eps = 2.0**-7 if spec.dtype == "bfloat16" else float(info.eps)
    return Window(*inner, plain, dtypes.smallest_normal(spec.dtype), eps, dtypes.work_dtype(spec.dtype))


def _drop_subnormals(array: Array, window: Window, low: float, high: float) -> None:
    small = (array != 0) & (np.abs(array) < window.tiny)
    if small.any():
        array[small] = 0.0 if low <= 0 <= high else window.plain


def _with_nonfinite(made: Made, seed: int, spec: TensorSpec) -> Made:
    values = [math.nan] * spec.allow_nan + [math.inf, -math.inf] * spec.allow_infinity
    rng = rng_of(seed + 1)
    places = rng.random(made.array.shape) < 0.1
    if made.array.size:
        places.reshape(-1)[rng.integers(made.array.size)] = True
    made.array[places] = rng.choice(values, size=int(places.sum()))
    return Made(made.array, f"{made.words}; one in ten {'/'.join(sorted({number(abs(v)) for v in values}))}")


# --- builders


def _constant(value: float, shape: tuple[int, ...], window: Window) -> Made:
    return Made(np.full(shape, value, dtype=window.dtype), f"all {number(value)}")


def _plain(_rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    return _constant(window.plain, shape, window)


def _upper(_rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    return _constant(window.high, shape, window)


def _lower(_rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    return _constant(window.low, shape, window)


def _alternating(_rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    array = np.full(shape, window.high, dtype=window.dtype)
    if shape:
        array[..., 1::2] = window.low
    return Made(array, f"alternating {number(window.high)} and {number(window.low)} along the last dimension")


def _corners(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    array = np.where(_coins(rng, shape), window.dtype(window.high), window.dtype(window.low))
    return Made(array, f"each value one of {number(window.low)} and {number(window.high)}")


def _sparse_corners(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    array = np.full(shape, window.plain, dtype=window.dtype)
    places = _random(rng, shape, window) < 0.1
    array[places] = np.where(_coins(rng, shape), window.dtype(window.low), window.dtype(window.high))[places]
    ends = f"{number(window.low)} or {number(window.high)}"
    return Made(array, f"one in ten {ends}, everything else {number(window.plain)}")


def _one_nonzero(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    array = np.full(shape, window.plain, dtype=window.dtype)
    if not array.size:
        return Made(array, "empty")
    flat = int(rng.integers(array.size))
    array.reshape(-1)[flat] = window.far
    return Made(array, f"all {number(window.plain)} but {number(window.far)} at {index_of(flat, shape)}")


def _random(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Floats:
    return np.asarray(rng.random(shape, dtype=window.dtype))


def _coins(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    size = math.prod(shape)
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-size // 8)), dtype=np.uint8), count=size)
    return bits.view(np.bool_).reshape(shape)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Floats:
    """Uniform over the window, also where high - low overflows."""
    noise = _random(rng, shape, window)
    span = window.dtype(window.high) - window.dtype(window.low)
    if np.isfinite(span):
        noise *= span
        noise += window.dtype(window.low)
        return noise
    rest = 1 - noise
    rest *= window.dtype(window.low)
    noise *= window.dtype(window.high)
    return np.asarray(noise + rest)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    return Made(_noise(rng, shape, window), f"uniform in {window.words()}")


def _log_uniform(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    """Magnitudes spread evenly over binary orders; signs at random where both are legal."""
    signs = _random(rng, shape, window)
    signs *= 2
    signs -= 1
    top = math.log2(max(abs(window.high), abs(window.low), window.tiny))
    floor = math.log2(max(abs(window.plain), window.tiny))
    floor = max(floor, top - (12, 40, 3000)[int(rng.integers(3))])
    array: Floats = np.asarray(np.abs(signs))
    array *= window.dtype((top - floor) * math.log(2))
    array += window.dtype(floor * math.log(2))
    np.exp(array, out=array)  # exp2 has no vectorised float32 form in numpy
    if window.low >= 0:
        return Made(array, f"log-uniform magnitudes, 2**{floor:.0f} to 2**{top:.0f}")
    np.negative(array, out=array) if window.high <= 0 else np.copysign(array, signs, out=array)
    return Made(array, f"log-uniform magnitudes, 2**{floor:.0f} to 2**{top:.0f}, within {window.words()}")


def _constant_column(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    array = _noise(rng, shape, window)
    column = int(rng.integers(max(shape[-1], 1)))
    value = (window.plain, window.high, window.low)[int(rng.integers(3))]
    array[..., column : column + 1] = value
    return Made(array, f"uniform in {window.words()}, column {column} constant at {number(value)}")


def _equal_rows(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    array = _noise(rng, shape, window)
    array[1:] = array[:1]
    return Made(array, f"uniform in {window.words()}, all rows equal")


def _pairs(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    array = _noise(rng, shape, window)
    array[1::2] = array[::2][: len(array[1::2])]
    return Made(array, f"uniform in {window.words()}, rows 0 and 1, 2 and 3, ... identical")


def _zero_rows(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    array = _noise(rng, shape, window)
    rows = np.flatnonzero(rng.random(shape[0]) < 0.25)
    rows = rows if rows.size or not shape[0] else np.array([int(rng.integers(shape[0]))])
    array[rows] = window.plain
    return Made(array, f"uniform in {window.words()}, rows {_some(rows)} all {number(window.plain)}")


def _some(rows: Array) -> str:
    shown = ", ".join(map(str, rows[:6].tolist()))
    return shown if len(rows) <= 6 else f"{shown}, ... ({len(rows)} of them)"


def _offset(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    """A large common value with a small spread: what cancels in E[x^2] - E[x]^2."""
    bits = int(rng.integers(4, 21))
    end = window.far
    array = _random(rng, shape, window)
    array *= window.dtype(-(2.0**-bits))
    array += 1
    array *= window.dtype(end)
    return Made(array, f"common offset {number(end)} with a relative spread of 2**-{bits}")


def _outlier(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    ordinary = Window(max(window.low, window.plain - 1), min(window.high, window.plain + 1), *_rest(window))
    array = _noise(rng, shape, ordinary)
    if not array.size:
        return Made(array, "empty")
    flat = int(rng.integers(array.size))
    value = window.far if rng.random() < 0.7 else (window.low if window.far == window.high else window.high)
    array.reshape(-1)[flat] = value
    index = [int(i) for i in np.unravel_index(flat, shape)]
    return Made(array, f"uniform in {ordinary.words()}, outlier {number(value)} at {index}")


def _rest(window: Window) -> tuple[float, float, float, type[np.float32] | type[np.float64]]:
    return window.plain, window.tiny, window.eps, window.dtype


def _tiny(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    """Signed zeros, subnormals and the smallest normal numbers; around another plain value: its nearest neighbours."""
    noise = _random(rng, shape, window)
    if window.plain != 0:
        array = (1 + np.floor(noise * 4) * window.dtype(window.eps)) * window.dtype(window.plain)
        return Made(array, f"{number(window.plain)} and its nearest neighbours")
    signs = np.asarray(noise - window.dtype(0.5))
    noise -= window.dtype(0.1)  # one in ten is zero
    np.maximum(noise, 0, out=noise)
    noise *= 2 * window.dtype(window.tiny)
    if window.low < 0 < window.high:
        return Made(np.asarray(np.copysign(noise, signs)), "subnormal numbers and signed zeros")
    return Made(noise if window.low == 0 else np.asarray(-noise), "subnormal numbers and zeros")


def _near_ends(rng: np.random.Generator, shape: tuple[int, ...], window: Window) -> Made:
    noise = _random(rng, shape, window)
    ends: Floats = np.where(_coins(rng, shape), window.dtype(window.low), window.dtype(window.high))
    noise *= window.dtype(-(2.0**-6))
    noise += 1
    noise *= ends
    return Made(noise, f"within 2 % of {number(window.low)} or {number(window.high)}")


# Simple to strange, because shrinking goes to the front.
BUILDERS: dict[str, Build] = {
    "plain": _plain,
    "upper": _upper,
    "lower": _lower,
    "alternating": _alternating,
    "one_nonzero": _one_nonzero,
    "corners": _corners,
    "sparse_corners": _sparse_corners,
    "uniform": _uniform,
    "log_uniform": _log_uniform,
    "constant_column": _constant_column,
    "equal_rows": _equal_rows,
    "pairs": _pairs,
    "zero_rows": _zero_rows,
    "offset": _offset,
    "outlier": _outlier,
    "tiny": _tiny,
    "near_ends": _near_ends,
    "nonfinite": _uniform,
}
NEEDS_ROWS = frozenset({"constant_column", "equal_rows", "pairs", "zero_rows"})
NOISELESS = frozenset({"plain", "upper", "lower", "alternating"})
_WEIGHTS = {"uniform": 5, "log_uniform": 4, "offset": 3, "outlier": 2}


def kinds_of(spec: TensorSpec) -> tuple[str, ...]:
    """The builders that fit a field, simple to strange; those with many distinct values appear more than once."""
    names = [name for name in BUILDERS if name != "nonfinite" or spec.allow_nan or spec.allow_infinity]
    if len(spec.shape) + (spec.family == "complex") < 2:
        names = [name for name in names if name not in NEEDS_ROWS]
    return tuple(name for name in names for _ in range(_WEIGHTS.get(name, 1)))
