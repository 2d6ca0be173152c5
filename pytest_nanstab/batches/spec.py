"""`TensorSpec`: what one tensor of a legal batch looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pytest_nanstab.batches import dtypes

Kind = Literal["values", "one_hot", "probabilities", "lengths", "mask"]
KINDS: tuple[str, ...] = get_args(Kind)
_KIND_DTYPES: dict[str, tuple[str, ...]] = {
    "values": tuple(dtypes.FAMILIES),
    "one_hot": tuple(name for name, family in dtypes.FAMILIES.items() if family != "complex"),
    "probabilities": tuple(name for name, family in dtypes.FAMILIES.items() if family == "float"),
    "lengths": tuple(name for name, family in dtypes.FAMILIES.items() if family == "int"),
    "mask": tuple(name for name, family in dtypes.FAMILIES.items() if family != "complex"),
}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """The legal values of one tensor of a batch; the argument names are Hypothesis' own.

    Attributes:
        shape: sizes of the dimensions; a string names a size, and equal names tie sizes within a batch.
        dtype: "float16", "float32", "float64", "bfloat16", "int8" to "int64", "uint8", "bool",
            "complex64" or "complex128".
        min_value: least legal value, rounded inward to the dtype; of real and imaginary part for complex dtypes;
            of the lengths for kind="lengths" (default 1). None: the dtype's own finite range.
        max_value: greatest legal value, likewise.
        allow_nan: whether NaN is legal.
        allow_infinity: whether +Inf and -Inf are legal, whatever the bounds of the finite values.
        allow_subnormal: whether non-zero numbers below the dtype's smallest normal number are legal.
        kind: "values"; "one_hot" (one 1 in each row of the last dimension); "probabilities" (rows of the last dimension
            are not negative and sum to 1); "lengths" (valid positions, at most the size they count); "mask" (True or 1
            means chosen).
        min_true: masks only: how many entries of each row of the last dimension are True at least.
        lengths: dotted path ("src.lengths", "1") of the field of kind "lengths" that counts the valid positions along
            the dimension after those the two fields share.
        pad_value: what stands at positions beyond the valid ones; None: any legal value.
        ignore_index: integer values only: a label outside the bounds that losses skip.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is allowed.
    """

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    min_value: float | None = None
    max_value: float | None = None
    allow_nan: bool = False
    allow_infinity: bool = False
    allow_subnormal: bool = True
    kind: Kind = "values"
    min_true: int = 0
    lengths: str | None = None
    pad_value: float | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        _check_shape(self.shape)
        _check_dtype(self.dtype)
        _check_kind(self)
        _check_flags(self)
        _check_bounds(self)
        _check_min_true(self)
        _check_padding(self)
        _check_ignore_index(self)

    @property
    def family(self) -> dtypes.Family:
        """The family of the dtype: "float", "int", "bool" or "complex"."""
        return dtypes.FAMILIES[self.dtype]

    def float_bounds(self) -> tuple[float, float]:
        """Least and greatest finite value, both numbers of the dtype; for float and complex dtypes."""
        return dtypes.float_bounds(self.dtype, self.min_value, self.max_value, subnormal=self.allow_subnormal)

    def int_bounds(self) -> tuple[int, int]:
        """Least and greatest value, exactly; for integer and bool dtypes."""
        low, high = dtypes.dtype_range(self.dtype)
        return (
            int(low if self.min_value is None else self.min_value),
            int(high if self.max_value is None else self.max_value),
        )


def _check_shape(shape: object) -> None:
    if not isinstance(shape, tuple):
        raise TypeError(f'shape must be a tuple of sizes and size names such as ("batch", 64), got {shape!r}')
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, (int, str)):
            raise TypeError(f"shape must hold ints and size names, got {size!r} in {shape!r}")
        if size == "" or (isinstance(size, int) and size < 0):
            raise ValueError(f"shape must hold sizes of 0 or more and non-empty names, got {size!r} in {shape!r}")


def _check_dtype(dtype: object) -> None:
    if not isinstance(dtype, str):
        raise TypeError(f'dtype must be a string such as "float32", got {dtype!r}')
    if dtype not in dtypes.FAMILIES:
        raise ValueError(f"dtype must be one of {_listed(tuple(dtypes.FAMILIES))}, got {dtype!r}")


def _check_kind(spec: TensorSpec) -> None:
    if spec.kind not in KINDS:
        raise ValueError(f"kind must be one of {_listed(KINDS)}, got {spec.kind!r}")
    allowed = _KIND_DTYPES[spec.kind]
    if spec.dtype not in allowed:
        raise ValueError(f'kind="{spec.kind}" needs dtype {_listed(allowed)}, got dtype {spec.dtype!r}')
    if spec.kind in ("one_hot", "probabilities", "mask") and not spec.shape:
        raise ValueError(f'kind="{spec.kind}" needs a shape of at least one dimension, got shape ()')
    if spec.kind in ("one_hot", "probabilities") and spec.shape[-1] == 0:
        raise ValueError(f'kind="{spec.kind}" needs a last dimension of 1 or more, got shape {spec.shape!r}')


def _check_flags(spec: TensorSpec) -> None:
    for name in ("allow_nan", "allow_infinity", "allow_subnormal"):
        given = getattr(spec, name)
        if not isinstance(given, bool):
            raise TypeError(f"{name} must be True or False, got {given!r}")
        floats = spec.family in ("float", "complex") and spec.kind == "values"
        if not floats and given is not (name == "allow_subnormal"):
            raise ValueError(
                f'{name}={given} is for float and complex fields of kind="values"; got dtype {spec.dtype!r}, '
                f"kind {spec.kind!r}"
            )


def _check_bounds(spec: TensorSpec) -> None:
    for name in ("min_value", "max_value"):
        given = getattr(spec, name)
        if given is not None:
            _check_bound(spec, name, given)
    if spec.min_value is not None and spec.max_value is not None and not spec.min_value <= spec.max_value:
        raise ValueError(f"min_value must not exceed max_value, got {spec.min_value!r} and {spec.max_value!r}")
    if spec.family in ("float", "complex") and spec.kind == "values":
        low, high = spec.float_bounds()
        if not low <= high:
            raise ValueError(
                f"min_value={spec.min_value!r} and max_value={spec.max_value!r} leave no number of dtype {spec.dtype}"
                f"{'' if spec.allow_subnormal else ' that is zero or normal'}"
            )
    if spec.kind == "lengths":
        _check_lengths_bounds(spec)


def _check_bound(spec: TensorSpec, name: str, given: float) -> None:
    if spec.kind in ("one_hot", "probabilities", "mask") or spec.family == "bool":
        what = 'dtype "bool"' if spec.kind == "values" else f'kind="{spec.kind}"'
        raise ValueError(f"{name} must be None for {what}, got {given!r}")
    check_number(name, given, spec.dtype)


def check_number(name: str, given: object, dtype: str) -> None:
    """Raise unless `given` is a finite number that the dtype's range holds (and a whole one for integers)."""
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"{name} must be a number or None, got {given!r}")
    if not (isinstance(given, int) or math.isfinite(given)):
        hint = "; leave it out for an open side" if math.isinf(given) else ""
        raise ValueError(f"{name} must be a finite number, got {given!r}{hint}")
    if dtypes.FAMILIES[dtype] in ("int", "bool") and given != int(given):
        raise ValueError(f"{name} must be a whole number for dtype {dtype}, got {given!r}")
    low, high = dtypes.dtype_range(dtype)
    if not low <= given <= high:
        raise ValueError(f"{name} must lie in the range of {dtype}, [{low!r}, {high!r}], got {given!r}")


def _check_lengths_bounds(spec: TensorSpec) -> None:
    low = 1 if spec.min_value is None else spec.min_value
    if low < 0:
        raise ValueError(f'min_value must be 0 or more for kind="lengths", got {spec.min_value!r}')
    if spec.max_value is not None and spec.max_value < low:
        raise ValueError(f"max_value must be at least the shortest length, {low!r}, got {spec.max_value!r}")


def _check_min_true(spec: TensorSpec) -> None:
    if isinstance(spec.min_true, bool) or not isinstance(spec.min_true, int):
        raise TypeError(f"min_true must be an int, got {spec.min_true!r}")
    if spec.min_true < 0:
        raise ValueError(f"min_true must be 0 or more, got {spec.min_true!r}")
    if spec.min_true and spec.kind != "mask":
        raise ValueError(f'min_true is for kind="mask", got min_true={spec.min_true} with kind {spec.kind!r}')
    if spec.kind == "mask" and isinstance(spec.shape[-1], int) and spec.min_true > spec.shape[-1]:
        raise ValueError(f"min_true must not exceed the last dimension, {spec.shape[-1]}, got {spec.min_true}")


def _check_padding(spec: TensorSpec) -> None:
    if spec.lengths is not None and (not isinstance(spec.lengths, str) or not spec.lengths):
        raise TypeError(f'lengths must be the dotted path of a field, such as "src.lengths", got {spec.lengths!r}')
    if spec.lengths is not None and spec.kind == "lengths":
        raise ValueError(f'lengths must be None for kind="lengths", got {spec.lengths!r}')
    if spec.pad_value is None:
        return
    if spec.lengths is None:
        raise ValueError(f"pad_value needs lengths, the path of the field of lengths; got pad_value={spec.pad_value!r}")
    if spec.family == "bool" and isinstance(spec.pad_value, bool):
        return
    check_number("pad_value", spec.pad_value, spec.dtype)


def _check_ignore_index(spec: TensorSpec) -> None:
    if spec.ignore_index is None:
        return
    if spec.family != "int" or spec.kind != "values":
        raise ValueError(
            f'ignore_index is for integer fields of kind="values", got dtype {spec.dtype!r}, kind {spec.kind!r}'
        )
    check_number("ignore_index", spec.ignore_index, spec.dtype)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


@dataclass(frozen=True, kw_only=True)
class SampledSpec(TensorSpec):
    """A spec read off a sample: it remembers what a user has no need to state.

    Attributes:
        as_numpy: the sample held a numpy array, so the batch gets one.
        max_true: masks: no row of the sample had more True entries, so more are not known to be legal.
        all_ignored: integers with an ignore_index: a sample held nothing else.
    """

    as_numpy: bool = False
    max_true: int | None = None
    all_ignored: bool = False
