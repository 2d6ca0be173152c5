"""From a description to a batch, and from a batch to words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pytest_nanstab.batches import discrete, dtypes, floats, trees
from pytest_nanstab.batches.layout import Field, Fixed, Plan, shortest_length
from pytest_nanstab.batches.recipe import Array, Described, Description, Made, Recipe, index_of, number
from pytest_nanstab.batches.spec import SampledSpec, TensorSpec

_FEW = 3  # as many deviating elements are listed one by one


def kinds_of(spec: TensorSpec) -> tuple[str, ...]:
    """The kinds of recipe that fit a field, simple to strange, repeated by weight."""
    if spec.kind == "values":
        return floats.kinds_of(spec) if spec.family in ("float", "complex") else discrete.int_kinds(spec)
    if spec.kind == "one_hot":
        return tuple(kind for kind in discrete.int_kinds(spec) if kind not in discrete.NEEDS_IGNORED)
    return {
        "probabilities": discrete.PROBABILITY_KINDS,
        "mask": discrete.MASK_KINDS,
        "lengths": discrete.LENGTH_KINDS,
    }[spec.kind]


def realise(plan: Plan, description: Description) -> Described:
    """Build every field of `description`; the same description gives the same bits."""
    made: dict[int, Made] = {}
    for index in _in_order(plan):
        made[index] = _made(plan, index, description, made)
    tensors = {field.path: _leaf(field.spec, made[index]) for index, field in enumerate(plan.fields)}
    words = (_words(field, tensors[field.path], made[index]) for index, field in enumerate(plan.fields))
    batch = trees.mapped(lambda path, leaf: tensors[path] if path in tensors else _constant(leaf), plan.tree)
    return Described(batch, "; ".join(words), description)


def has_twins(plan: Plan) -> bool:
    """Whether two fields could hold the same values."""
    return any(_twin_of(plan, index) != index for index in range(len(plan.fields)))


def _twin_of(plan: Plan, index: int) -> int:
    """The first field that could hold the same values: alike in everything but the bounds.

    Lengths and masks obey more than their spec says: the sizes they count, the padding.
    """
    if plan.fields[index].spec.kind in ("lengths", "mask"):
        return index
    wanted = _without_bounds(plan.fields[index].spec)
    return next(other for other, field in enumerate(plan.fields) if _without_bounds(field.spec) == wanted)


def _without_bounds(spec: TensorSpec) -> TensorSpec:
    is_plain = spec.kind == "values" and spec.family == "float"
    return dataclasses.replace(spec, min_value=None, max_value=None) if is_plain else spec


def _as_twin(field: Field, twin: Field, made: Made) -> Made:
    array = made.array.copy()
    if field.spec.kind == "values" and field.spec.family == "float":
        np.clip(array, *field.spec.float_bounds(), out=array)
    return Made(
        array,
        f"the same as {twin.name}, within its own bounds" if field.spec != twin.spec else f"the same as {twin.name}",
    )


def _in_order(plan: Plan) -> Iterator[int]:
    """Lengths first: padding and masks follow them."""
    yield from (index for index, field in enumerate(plan.fields) if field.spec.kind == "lengths")
    yield from (index for index, field in enumerate(plan.fields) if field.spec.kind != "lengths")


def _made(plan: Plan, index: int, description: Description, done: dict[int, Made]) -> Made:
    field, recipe = plan.fields[index], description.recipes[index]
    shape = field.shape(description.sizes)
    if field.spec.kind == "lengths":
        longest = plan.longest(index, description.sizes)
        return discrete.build_lengths(shape, recipe, shortest_length(field.spec), longest)
    lengths = None if field.lengths is None else done[field.lengths].array
    twin = _twin_of(plan, index) if description.alike else index
    is_own = twin == index
    made = _values(field, shape, recipe, lengths) if is_own else _as_twin(field, plan.fields[twin], done[twin])
    return made if lengths is None else _padded(field, made, lengths)


def _values(field: Field, shape: tuple[int, ...], recipe: Recipe, lengths: Array | None) -> Made:
    spec = field.spec
    if spec.kind == "mask":
        ends_rows = field.time_axis == len(shape) - 1 and spec.pad_value is not None and not spec.pad_value
        return discrete.build_mask(spec, shape, recipe, lengths if ends_rows else None)
    if spec.kind == "one_hot":
        return discrete.build_one_hot(spec, shape, recipe)
    if spec.kind == "probabilities":
        return discrete.build_probabilities(spec, shape, recipe)
    if spec.family in ("float", "complex"):
        return floats.build(spec, shape, recipe)
    return discrete.build_ints(spec, shape, recipe)


def _padded(field: Field, made: Made, lengths: Array) -> Made:
    pad = field.spec.pad_value
    if pad is None or not made.array.size:
        return made
    beyond = np.arange(made.array.shape[field.time_axis]) >= lengths[..., None]
    if field.spec.family == "complex":
        made.array[beyond] = (pad, 0)
    else:
        made.array[beyond] = pad
    return Made(made.array, f"{made.words}, {number(pad)} beyond the lengths" if beyond.any() else made.words)


def _leaf(spec: TensorSpec, made: Made) -> Any:
    tensor = dtypes.tensor_of(np.ascontiguousarray(made.array).reshape(made.array.shape), spec.dtype)
    as_numpy = isinstance(spec, SampledSpec) and spec.as_numpy
    return tensor.numpy() if as_numpy else tensor


def _constant(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Fixed) else leaf


def _words(field: Field, leaf: Any, made: Made) -> str:
    return f"{_shown(field.name)} {field.spec.dtype}{list(leaf.shape)}: {made.words}"


def _shown(name: str) -> str:
    """A field's name; the place in a tuple is no number among the others."""
    return f"[{name}]" if name.isdecimal() else name


# --- words for any batch


def describe(batch: Any) -> str:
    """Words for a batch: "x float32[32, 128]: all 0; element [4, 7] set to 88.8".

    A `Described` has its own words, those of how it was built. Any other pytree of tensors and arrays is looked at:
    constant tensors with few deviations, constant columns, equal rows, non-finite values, the range.
    """
    if isinstance(batch, Described):
        return batch.words
    found = []
    for path, leaf in trees.leaves(batch):
        if isinstance(leaf, (torch.Tensor, np.ndarray)):
            name = f"{_shown(trees.dotted(path))} " if path else ""
            found.append(f"{name}{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}: {_seen(leaf)}")
    return "; ".join(found) or "no tensors"


def _seen(leaf: Any) -> str:
    array = plain_array(leaf)
    if array.dtype.kind not in "biufc":
        return "not numeric"
    if not array.size:
        return "empty"
    values, counts = np.unique(array, return_counts=True)
    common = values[counts.argmax()]
    odd = np.argwhere((array != common) & ~(np.isnan(array) & np.isnan(common)))
    if len(odd) <= _FEW and len(odd) < array.size / 2:
        edits = (f"element {index.tolist()} set to {number(array[tuple(index)])}" for index in odd)
        return "; ".join([f"all {number(common)}", *edits])
    return "; ".join(_traits(array))


def plain_array(leaf: Any) -> Array:
    """A tensor or array as a numpy array; bfloat16, which numpy lacks, as float32."""
    if not isinstance(leaf, torch.Tensor):
        return np.asarray(leaf)
    tensor = leaf.detach().cpu().resolve_conj().resolve_neg()
    return np.asarray((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy())


def _traits(array: Array) -> Iterator[str]:
    finite = array[np.isfinite(array)]
    if array.dtype.kind == "b":
        yield f"{int(array.sum())} of {array.size} True"
    elif finite.size and array.dtype.kind != "c":
        yield f"values in [{number(finite.min())}, {number(finite.max())}]"
    if finite.size < array.size:
        first = index_of(int(np.flatnonzero(~np.isfinite(array).reshape(-1))[0]), array.shape)
        yield f"{array.size - finite.size} of {array.size} non-finite, the first at {first}"
    if array.ndim < 2 or len(array) < 2:
        return
    columns = np.flatnonzero((array == array[:1]).all(axis=tuple(range(array.ndim - 1))))
    if columns.size == array.shape[-1]:
        yield "all rows equal"
        return
    for column in columns[:_FEW]:
        yield f"column {column} constant" + (f" at {number(array[0, column])}" if array.ndim == 2 else " over the rows")
