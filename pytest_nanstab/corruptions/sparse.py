"""Corruptions of sparse matrices and tensors: what they store can go bad, what they leave out cannot."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from pytest_nanstab.corruptions.model import Recipe
from pytest_nanstab.corruptions.numbers import of_array, of_tensor

_STORED = ("nonfinite", "magnitude", "sign")


def is_sparse(leaf: Any) -> bool:
    """Whether `leaf` is a matrix of scipy's, or a tensor, that stores some of its values only."""
    if isinstance(leaf, torch.Tensor):
        return leaf.layout is torch.sparse_coo
    return hasattr(leaf, "tocoo") and hasattr(leaf, "data")


def of_sparse(leaf: Any) -> Iterator[Recipe]:
    """Corruptions of the stored values, in place and row of the whole."""
    if isinstance(leaf, torch.Tensor):
        whole = leaf.detach().coalesce()
        rows = whole.indices()[0].tolist()
        yield from _moved(of_tensor(whole.values()), rows, partial(_tensor_with, whole))
    else:
        coo = leaf.tocoo()
        rows = (coo.coords[0] if hasattr(coo, "coords") else coo.row).tolist()
        yield from _moved(of_array(np.asarray(coo.data)), rows, partial(_matrix_with, leaf, coo))


def _moved(found: Iterator[Recipe], rows: list[int], make: Any) -> Iterator[Recipe]:
    for recipe in found:
        if recipe.family in _STORED:
            place = recipe.place.replace("element", "stored value").replace("everywhere", "every stored value")
            yield recipe.within(make, place, sorted({rows[at] for at in recipe.rows}))


def _tensor_with(whole: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(whole.indices().clone(), values, whole.shape)


def _matrix_with(leaf: Any, coo: Any, values: Any) -> Any:
    changed = coo.copy()
    changed.data = values
    return changed.asformat(leaf.format)
