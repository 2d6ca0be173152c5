"""What a corruption leaves behind in a pipeline that keeps something: buffers, and the scale of later output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from pytest_nanstab.batches import trees
from pytest_nanstab.corruptions.rows import as_array, is_rows
from pytest_nanstab.pipelines.isolation import GENERATORS

# Below float32's resolution rows can no longer be told apart (IEEE 754: eps = 2**-23).
_COLLAPSED = float(np.finfo(np.float32).eps)


def bad_buffers(held: Iterable[Any]) -> set[str]:
    """Names of the buffers and parameters that are not finite, of every module among what a pipeline is or holds."""
    found = set()
    for module in held:
        if not isinstance(module, nn.Module):
            continue
        for name, tensor in (*module.named_buffers(), *module.named_parameters()):
            if not nn.parameter.is_lazy(tensor) and tensor.is_floating_point() and not _is_finite(tensor):
                found.add(name)
    return found


def holds_generator(held: Iterable[Any]) -> bool:
    """Whether a pipeline draws from a generator of its own, whose state no restoring of the global ones resets."""
    return any(isinstance(item, GENERATORS) for item in held)


def _is_finite(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "meta" or bool(torch.isfinite(tensor.detach()).all())


def collapsed(expected: Any, later: Any) -> bool:
    """Whether good data that came out with a spread now come out, in some field or column, with next to none."""
    before, after = dict(trees.leaves(expected, node=trees.is_node)), dict(trees.leaves(later, node=trees.is_node))
    return any(
        path in after and is_rows(leaf) and is_rows(after[path]) and _is_flat(as_array(leaf), as_array(after[path]))
        for path, leaf in before.items()
    )


def _is_flat(expected: Any, later: Any) -> bool:
    if expected.shape != later.shape or not expected.size or expected.dtype.kind != "f" or later.dtype.kind != "f":
        return False
    before, after = _spread(expected), _spread(later)
    return bool(((before > 0) & (after <= before * _COLLAPSED)).any())


def _spread(values: Any) -> Any:
    """Largest minus smallest, per column of a table, as a share of the magnitude that the column has."""
    axis = 0 if values.ndim == 2 else None
    with np.errstate(invalid="ignore", over="ignore"):
        return np.ptp(values.astype(np.float64), axis=axis)
