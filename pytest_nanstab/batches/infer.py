"""Reading a domain off sample batches: only what the samples prove legal."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pytest_nanstab.batches import dtypes, trees
from pytest_nanstab.batches.build import plain_array
from pytest_nanstab.batches.layout import Fixed
from pytest_nanstab.batches.recipe import Array
from pytest_nanstab.batches.spec import SampledSpec, TensorSpec

_SUM_TOLERANCE = (
    1e-4  # rows within this of 1 are probabilities: float16 softmax rows stay inside, coincidences rarely do
)


class Inferred(NamedTuple):
    """A domain read off samples: a pytree for `from_spec`, and the ranges of its sizes."""

    spec: Any
    sizes: dict[str, tuple[int, int]]


def infer_spec(*batches: Any, domain: Any = None) -> Inferred:
    """The domain that one or several batches of the same structure prove legal.

    Floats lie between the least and the greatest finite value seen; NaN is legal if it was seen, infinities if both
    were. Integers lie between the least and the greatest seen; a single negative value beside others (-100, -1) is a
    label that losses skip, and all of them skipped only if a sample was. Bool fields, and fields of 0 and 1 with two
    dimensions or more, are masks with as few and as many 1 per row as were seen. Rows of two dimensions or more are
    one-hot, and rows of floats are probabilities, when all rows of all samples are. Sizes are those seen: a size that
    differed between batches ranges over what was seen, and the first dimension shared by most fields is called "batch".
    Fewer rows than seen are not assumed legal: a batch of one is an error for batch normalisation.

    Args:
        batches: pytrees of tensors and numpy arrays; other leaves are handed through from the first batch.
        domain: TensorSpec for some fields, shaped like a batch; they replace what would be inferred.

    Raises:
        TypeError, ValueError: no batch, no tensor in it, structures that differ, a domain that does not fit.
    """
    if not batches:
        raise TypeError("infer_spec needs at least one batch, got none")
    samples = [dict(trees.leaves(batch)) for batch in batches]
    _check_same_structure(samples)
    given = _matched(batches[0], domain)
    arrays = {path: _arrays(samples, path) for path, leaf in samples[0].items() if _dtype_of(leaf) is not None}
    if not arrays and not given:
        raise ValueError(f"batch must hold at least one tensor or array, got {type(batches[0]).__name__}")
    named = _Names({path: [array.shape for array in seen] for path, seen in arrays.items() if path not in given})

    def spec_of(path: trees.Path, leaf: Any) -> Any:
        if path in given:
            return _like(leaf, given[path])
        return _inferred(leaf, arrays[path], named.shape(path)) if path in arrays else Fixed(leaf)

    spec = trees.mapped(spec_of, batches[0])
    used = {size for _, leaf in trees.leaves(spec) if isinstance(leaf, TensorSpec) for size in leaf.shape}
    return Inferred(spec, {name: pair for name, pair in named.ranges.items() if name in used})


def _check_same_structure(samples: Sequence[Mapping[trees.Path, Any]]) -> None:
    for number, sample in enumerate(samples[1:], start=2):
        odd = sorted(map(trees.dotted, set(sample) ^ set(samples[0])))
        if odd:
            raise ValueError(f"batches must have the same fields; batch 1 and batch {number} differ in {odd[0]!r}")


# --- the domain given by the user


def _matched(batch: Any, domain: Any, path: trees.Path = ()) -> dict[trees.Path, TensorSpec]:
    """The specs of `domain` by path; None, and what the domain does not mention, is left to inference."""
    if domain is None:
        return {}
    if isinstance(domain, TensorSpec):
        if trees.is_container(batch):
            raise TypeError(f"domain{_at(path)} is one TensorSpec, but the batch has {type(batch).__name__} there")
        return {path: domain}
    if not trees.is_container(domain):
        raise TypeError(f"domain{_at(path)} must be TensorSpec, None or nested like the batch, got {domain!r}")
    if not trees.is_container(batch):
        raise TypeError(f"domain{_at(path)} is {type(domain).__name__}, but the batch has {type(batch).__name__} there")
    found: dict[trees.Path, TensorSpec] = {}
    known = dict(trees.children(batch))
    for key, child in trees.children(domain):
        if key not in known:
            raise ValueError(f"domain{_at(path)} has {key!r}, but the batch has only {', '.join(map(repr, known))}")
        found.update(_matched(known[key], child, (*path, key)))
    if not isinstance(domain, Mapping) and len(trees.children(domain)) != len(known):
        raise ValueError(
            f"domain{_at(path)} must have {len(known)} items like the batch, got {len(trees.children(domain))}"
        )
    return found


def _at(path: trees.Path) -> str:
    return f" at {trees.dotted(path)!r}" if path else ""


def _like(leaf: Any, spec: TensorSpec) -> TensorSpec:
    """A numpy field of the sample stays numpy under a spec of the user's."""
    if not isinstance(leaf, np.ndarray):
        return spec
    names = [field.name for field in dataclasses.fields(TensorSpec)]
    return SampledSpec(**{name: getattr(spec, name) for name in names}, as_numpy=True)


# --- sizes


class _Names:
    """Names for dimensions: what varied together between batches, or is the shared first dimension, has one name."""

    def __init__(self, shapes: Mapping[trees.Path, list[tuple[int, ...]]]) -> None:
        self._shapes = shapes
        self.ranges: dict[str, tuple[int, int]] = {}
        self._batch = self._most_common_first()
        self._names: dict[tuple[int, ...], str] = {}

    def _most_common_first(self) -> tuple[int, ...] | None:
        firsts = Counter(tuple(shape[0] for shape in seen) for seen in self._shapes.values() if all(seen))
        return firsts.most_common(1)[0][0] if firsts else None

    def shape(self, path: trees.Path) -> tuple[int | str, ...]:
        seen = self._shapes[path]
        if len({len(shape) for shape in seen}) > 1:
            raise ValueError(f"batches must agree in the dimensions of {trees.dotted(path)!r}, got shapes {seen}")
        return tuple(self._size(axis, along) for axis, along in enumerate(zip(*seen, strict=True)))

    def _size(self, axis: int, seen: tuple[int, ...]) -> int | str:
        if seen == self._batch and (axis == 0 or len(set(seen)) > 1):
            name = "batch"
        elif len(set(seen)) == 1:
            return seen[0]
        else:
            name = self._names.setdefault(seen, f"size{len(self._names) + 1}")
        self.ranges[name] = (min(seen), max(seen))
        return name


# --- fields


def _dtype_of(leaf: Any) -> str | None:
    """The dtype's name when a TensorSpec can say it."""
    dense = isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided
    if dense or isinstance(leaf, np.ndarray):
        name = str(leaf.dtype).removeprefix("torch.")
        return name if name in dtypes.FAMILIES else None
    return None


def _arrays(samples: Sequence[Mapping[trees.Path, Any]], path: trees.Path) -> list[Array]:
    names = {_dtype_of(sample[path]) for sample in samples}
    if len(names) > 1:
        raise ValueError(f"batches must agree in the dtype of {trees.dotted(path)!r}, got {sorted(map(str, names))}")
    return [plain_array(sample[path]) for sample in samples]


def _inferred(leaf: Any, seen: list[Array], shape: tuple[int | str, ...]) -> TensorSpec:
    dtype = str(_dtype_of(leaf))
    common: dict[str, Any] = {"shape": shape, "dtype": dtype, "as_numpy": isinstance(leaf, np.ndarray)}
    rows = [array.reshape(-1, array.shape[-1]) for array in seen if array.ndim >= 1 and array.size]
    family = dtypes.FAMILIES[dtype]
    if rows and family == "bool":
        return _mask(common, rows)
    if rows and len(shape) >= 2 and family in ("float", "int") and all(map(_is_binary, rows)):
        if all((row.sum(axis=-1) == 1).all() for row in rows) and rows[0].shape[-1] > 1:
            return SampledSpec(**common, kind="one_hot")
        if family == "int" or len(np.unique(np.concatenate([row.reshape(-1) for row in rows]))) > 1:
            return _mask(common, rows)
    if rows and len(shape) >= 2 and family == "float" and rows[0].shape[-1] > 1 and all(map(_sum_to_one, rows)):
        return SampledSpec(**common, kind="probabilities")
    if family == "int":
        ignored = _ignored(seen)
        if ignored is not None:
            return _labels(common, seen, ignored)
    values = np.concatenate([array.reshape(-1) for array in seen])
    return _values(common, values, family)


def _ignored(seen: list[Array]) -> int | None:
    """The only negative value among others."""
    values = np.unique(np.concatenate([array.reshape(-1) for array in seen]))
    return int(values[0]) if values.size > 1 and values[0] < 0 <= values[1] else None


def _labels(common: dict[str, Any], seen: list[Array], ignored: int) -> TensorSpec:
    kept = np.concatenate([array[array != ignored] for array in seen])
    return SampledSpec(
        **common,
        min_value=int(kept.min()),
        max_value=int(kept.max()),
        ignore_index=ignored,
        all_ignored=any(array.size > 0 and bool((array == ignored).all()) for array in seen),
    )


def _is_binary(rows: Array) -> bool:
    return bool(((rows == 0) | (rows == 1)).all())


def _sum_to_one(rows: Array) -> bool:
    wide = rows.astype(np.float64)
    return bool((wide >= 0).all() and (np.abs(wide.sum(axis=-1) - 1) <= _SUM_TOLERANCE).all())


def _mask(common: dict[str, Any], rows: list[Array]) -> TensorSpec:
    counts = np.concatenate([row.sum(axis=-1, dtype=np.int64) for row in rows])
    return SampledSpec(**common, kind="mask", min_true=int(counts.min()), max_true=int(counts.max()))


def _values(common: dict[str, Any], values: Array, family: dtypes.Family) -> TensorSpec:
    if family == "bool" or not values.size:
        return SampledSpec(**common)
    if family == "int":
        return SampledSpec(**common, min_value=int(values.min()), max_value=int(values.max()))
    parts = values.view(values.real.dtype) if family == "complex" else values
    finite = parts[np.isfinite(parts)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return SampledSpec(
        **common,
        min_value=low,
        max_value=high,
        allow_nan=bool(np.isnan(parts).any()),
        allow_infinity=bool((parts == np.inf).any() and (parts == -np.inf).any()),
    )
