"""Fingerprints of parameters and gradients: small enough to exchange, and telling when ranks part."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.ranks.sharding import is_partial, local
from pytest_nanstab.watching import measure, torch_private

Print = tuple[float, float]  # sum and L2 norm, in float64
# Sums of the same numbers agree to this, whatever the order they are added in (float64).
_ORDER = 1e-9
# ... and numbers that differ in their last bits move the sum of n of them by about so many eps / sqrt(n) of its size.
_ROUNDING = 4.0


def fingerprint(tensor: Tensor | None) -> Print | None:
    """Sum and L2 norm of what lies on this rank; None where nothing can be read or something is not finite."""
    if tensor is None or is_partial(tensor):
        return None
    with torch_private.unseen():
        values = measure.plain(local(tensor))
        if values is None:
            return None
        total = float(values.sum(dtype=torch.float64))
        size = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    return (total, size) if math.isfinite(total) and math.isfinite(size) else None


def digest(prints: Mapping[str, Any]) -> str:
    """A short text that is equal exactly where all the prints are."""
    return hashlib.sha256(repr(sorted(prints.items())).encode()).hexdigest()[:16]


def are_equal(prints: Iterable[Print], *, elements: int, eps: float) -> bool:
    """Whether prints of the same tensor on several ranks agree, but for the order of summation and last bits."""
    known = list(prints)
    largest = max((size for _, size in known), default=0.0)
    # |sum| is at most norm * sqrt(n): that is the size against which a difference counts.
    allowed = max(_ORDER, _ROUNDING * eps / math.sqrt(max(elements, 1))) * largest
    return all(
        abs(total - known[0][0]) <= allowed * math.sqrt(max(elements, 1)) and abs(size - known[0][1]) <= allowed
        for total, size in known
    )
