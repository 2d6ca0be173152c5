"""What a domain says about the fields of a batch, and which values lie outside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_nanstab.checks import _numbers
from pytest_nanstab.checks._columns import as_array
from pytest_nanstab.checks._leaves import Array, Leaf, Values

_UNBOUNDED = (-math.inf, math.inf)


def specs_of(domain: Any) -> dict[str, Any]:
    """The specs of a domain by dotted field path; anything with bounds counts as a spec."""
    found: dict[str, Any] = {}
    stack = [("", domain)]
    while stack:
        path, node = stack.pop()
        if node is None:
            continue
        if hasattr(node, "min_value") and hasattr(node, "allow_nan"):
            found[path] = node
            continue
        children = items(node)
        if children is None:
            raise TypeError(f"domain must hold TensorSpecs shaped like a batch, got {node!r}")
        stack.extend((joined(path, key), child) for key, child in children)
    return found


def joined(path: str, key: object) -> str:
    """The dotted path of an item."""
    return f"{path}.{key}" if path else str(key)


def items(node: Any) -> list[tuple[Any, Any]] | None:
    """Keys and items of a mapping, a named tuple, a dataclass, a list or a tuple; None of anything else."""
    if isinstance(node, Mapping):
        return list(node.items())
    names = getattr(node, "_fields", None) or getattr(node, "__dataclass_fields__", None)
    if names:
        return [(name, getattr(node, name)) for name in names]
    return list(enumerate(node)) if isinstance(node, (list, tuple)) else None


def bounds_of(spec: Any, values: Values) -> tuple[float, float]:
    """The bounds of a spec as the field's dtype has them; infinite where there is none."""
    if spec is None:
        return _UNBOUNDED
    return _bound(spec.min_value, values, -math.inf), _bound(spec.max_value, values, math.inf)


def _bound(bound: float | None, values: Values, unbounded: float) -> float:
    """A bound as the field's dtype has it: 0.1 must not lie below float32's 0.1."""
    if bound is None:
        return unbounded
    if isinstance(values, Tensor):
        return torch.tensor(bound, dtype=values.dtype).item() if values.is_floating_point() else bound
    return float(values.dtype.type(bound)) if values.dtype.kind == "f" else bound


def outside(leaf: Leaf, spec: Any, low: float, high: float) -> dict[str, Any] | None:
    """Evidence for finite values outside the bounds; padding and ignored targets are inside."""
    numbers = as_array(leaf.values)
    bad = np.asarray((numbers < low) | (numbers > high))
    for exempt in (getattr(spec, "pad_value", None), getattr(spec, "ignore_index", None)):
        bad &= True if exempt is None else numbers != exempt
    if numbers.dtype.kind == "f":
        bad &= np.isfinite(numbers)  # the others are allowed, or a fault of their own
    return _evidence(leaf, spec, numbers, bad) if bad.any() else None


def _evidence(leaf: Leaf, spec: Any, numbers: Array, bad: Array) -> dict[str, Any]:
    ends = [spec.min_value, spec.max_value]
    worst = numbers[bad][np.argmax(np.abs(numbers[bad].astype(np.float64)))]
    return {
        "dtype": leaf.dtype,
        "shape": list(leaf.shape),
        "count": int(bad.sum()),
        "of": int(bad.size),
        "first_index": _numbers.index_of_first(leaf, bad),
        "value": worst.item(),
        "domain": "{} to {}".format(*("unbounded" if end is None else end for end in ends)),
        **_numbers.places(leaf, bad, bad.size),
    }
