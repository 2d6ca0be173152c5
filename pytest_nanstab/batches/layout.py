"""A checked domain: the fields of a batch, how their sizes tie, and which field counts whose positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_nanstab.batches import dtypes, trees
from pytest_nanstab.batches.spec import TensorSpec

DEFAULT_SIZES = (1, 8)  # a named size nobody gave a range for: small enough to read, large enough to differ
Sizes = Mapping[str, tuple[int, int]]
_CONSTANTS = (str, bytes, int, float, bool, type(None))


@dataclass(frozen=True)
class Fixed:
    """A leaf that is handed through unchanged: text, a number, an object the sample carried."""

    value: Any


@dataclass(frozen=True)
class Field:
    """One tensor of the batch.

    Attributes:
        path: where it stands in the batch.
        spec: what is legal.
        lengths: index in `Plan.fields` of the field that counts its valid positions; None without one.
        time_axis: the dimension whose positions are counted.
    """

    path: trees.Path
    spec: TensorSpec
    lengths: int | None = None
    time_axis: int = 0

    @property
    def name(self) -> str:
        """The dotted path; "batch" when the batch is this one tensor."""
        return trees.dotted(self.path) or "batch"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape once the named sizes are chosen."""
        return tuple(size if isinstance(size, int) else sizes[size] for size in self.spec.shape)


@dataclass(frozen=True)
class Plan:
    """A whole domain: the tree as given, its tensors, and the range of each named size in order of appearance."""

    tree: Any
    fields: tuple[Field, ...]
    sizes: dict[str, tuple[int, int]]

    def longest(self, index: int, sizes: Mapping[str, int]) -> int:
        """The greatest legal length of the lengths field `index`."""
        field = self.fields[index]
        limits = [user.shape(sizes)[user.time_axis] for user in self.fields if user.lengths == index]
        if field.spec.max_value is not None:
            limits.append(int(field.spec.max_value))
        return min(limits)


def plan(spec: Any, sizes: Sizes | None = None) -> Plan:
    """Check a pytree of TensorSpec and the ranges of its sizes.

    Raises:
        TypeError, ValueError: naming the field or size, what was given and what is allowed.
    """
    fields = _with_lengths(_fields(spec))
    ranges = _ranges(fields, sizes)
    checked = Plan(spec, fields, ranges)
    for field in fields:
        _require_room(checked, field)
    for index, field in enumerate(fields):
        _check_counts(checked, index, field)
    return checked


def _fields(spec: Any) -> list[Field]:
    found = []
    for path, leaf in trees.leaves(spec):
        if isinstance(leaf, TensorSpec):
            found.append(Field(path, leaf))
        elif not isinstance(leaf, (*_CONSTANTS, Fixed)):
            where = f"at {trees.dotted(path)!r} " if path else ""
            raise TypeError(f"spec must hold TensorSpec {where}(or text, numbers, None), got {type(leaf).__name__}")
    if not found:
        raise ValueError(f"spec must hold at least one TensorSpec, got {spec!r}")
    return found


# --- lengths


def _with_lengths(fields: list[Field]) -> tuple[Field, ...]:
    indices = {trees.dotted(field.path): index for index, field in enumerate(fields)}
    return tuple(field if field.spec.lengths is None else _resolved(field, fields, indices) for field in fields)


def _resolved(field: Field, fields: list[Field], indices: Mapping[str, int]) -> Field:
    wanted = str(field.spec.lengths)
    if wanted not in indices:
        known = ", ".join(map(repr, indices))
        raise ValueError(f"lengths of {field.name!r} must be the path of a field ({known}), got {wanted!r}")
    counter = fields[indices[wanted]].spec
    if counter.kind != "lengths":
        raise ValueError(
            f'lengths of {field.name!r} must name a field of kind="lengths"; {wanted!r} is {counter.kind!r}'
        )
    shared = len(counter.shape)
    if len(field.spec.shape) <= shared or field.spec.shape[:shared] != counter.shape:
        raise ValueError(
            f"shape of {field.name!r} must start with the shape of its lengths, {counter.shape!r}, and have one more "
            f"dimension; got {field.spec.shape!r}"
        )
    return dataclasses.replace(field, lengths=indices[wanted], time_axis=shared)


def _check_counts(checked: Plan, index: int, field: Field) -> None:
    spec = field.spec
    used = any(other.lengths == index for other in checked.fields)
    if spec.kind == "lengths" and spec.max_value is None and not used:
        raise ValueError(
            f"{field.name!r} counts the positions of no field: give it max_value, or name it in a `lengths`"
        )
    if spec.kind != "mask" or field.lengths is None or spec.pad_value is None or spec.pad_value or not spec.min_true:
        return
    shortest = shortest_length(checked.fields[field.lengths].spec)
    if field.time_axis != len(spec.shape) - 1 or shortest < spec.min_true:
        raise ValueError(
            f"min_true={spec.min_true} of {field.name!r} cannot hold where padding is False: "
            f"lengths of {spec.min_true} or more along the last dimension are needed, the shortest is {shortest}"
        )


def shortest_length(spec: TensorSpec) -> int:
    """The least legal length: 1 unless the spec says otherwise, because most code divides by it."""
    return 1 if spec.min_value is None else int(spec.min_value)


# --- sizes


def _ranges(fields: tuple[Field, ...], sizes: Sizes | None) -> dict[str, tuple[int, int]]:
    names = list(dict.fromkeys(size for field in fields for size in field.spec.shape if isinstance(size, str)))
    given = {} if sizes is None else sizes
    if not isinstance(given, Mapping):
        raise TypeError(f'sizes must be a mapping such as {{"batch": (2, 64)}}, got {sizes!r}')
    for name, pair in given.items():
        if name not in names:
            known = ", ".join(map(repr, names)) or "none"
            raise ValueError(f"sizes names {name!r}, but the named sizes of the spec are: {known}")
        _check_range(name, pair)
    return {name: (given[name][0], given[name][1]) if name in given else DEFAULT_SIZES for name in names}


def _check_range(name: str, pair: object) -> None:
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(end, int) and not isinstance(end, bool) for end in pair)
    ):
        raise TypeError(f"sizes[{name!r}] must be two ints, (least, most), got {pair!r}")
    if not 0 <= pair[0] <= pair[1]:
        raise ValueError(f"sizes[{name!r}] must be (least, most) with 0 <= least <= most, got {pair!r}")


def _require_room(checked: Plan, field: Field) -> None:
    """Raise the least size of a dimension to what a field needs: min_true entries, one class, the shortest length."""
    spec = field.spec
    if spec.kind == "mask":
        _raise_least(checked, field, len(spec.shape) - 1, spec.min_true, "min_true")
    if spec.kind in ("one_hot", "probabilities"):
        _raise_least(checked, field, len(spec.shape) - 1, 1, f'kind="{spec.kind}"')
    if field.lengths is not None:
        shortest = shortest_length(checked.fields[field.lengths].spec)
        _raise_least(checked, field, field.time_axis, shortest, "the shortest length")


def _raise_least(checked: Plan, field: Field, axis: int, needed: int, why: str) -> None:
    size = field.spec.shape[axis]
    low, high = (size, size) if isinstance(size, int) else checked.sizes[size]
    if high < needed:
        raise ValueError(
            f"dimension {axis} of {field.name!r} ({size!r}) must reach {needed} for {why}, got {high} at most"
        )
    if isinstance(size, str):
        checked.sizes[size] = (max(low, needed), high)


# --- another precision


def with_dtype(spec: Any, dtype: str) -> Any:
    """The same domain with its float fields in `dtype`; bounds and padding beyond its range become its largest values.

    Raises:
        ValueError: when `dtype` is no float dtype, or holds no number of a field's range.
    """
    if dtypes.FAMILIES.get(dtype) != "float":
        raise ValueError(f"dtype must be a float dtype, got {dtype!r}")
    return trees.mapped(lambda _path, leaf: _cast(leaf, dtype), spec)


def _cast(leaf: Any, dtype: str) -> Any:
    if not isinstance(leaf, TensorSpec) or leaf.family != "float" or getattr(leaf, "as_numpy", False):
        return leaf  # arrays keep their dtype: casting a batch to another precision casts its tensors
    low, high = dtypes.dtype_range(dtype)

    def held(value: float | None) -> float | None:
        return None if value is None else min(max(value, low), high)

    return dataclasses.replace(
        leaf,
        dtype=dtype,
        min_value=held(leaf.min_value),
        max_value=held(leaf.max_value),
        pad_value=held(leaf.pad_value),
    )
