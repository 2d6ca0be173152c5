"""A non-finite loss between its `backward()` and the step that would use its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.watching import torch_private

_MAX_NODES = 200_000


class PendingLoss:
    """A non-finite loss whose gradients no optimizer has used yet.

    It is discarded when its gradients are: cleared by `zero_grad`, replaced, or dropped by a step that was skipped.
    """

    def __init__(self, step: int, value: float, spot: tuple[str, int] | None, leaves: list[Tensor]) -> None:
        self.step = step
        self.value = value
        self.spot = spot
        self.batch: object = None
        self.leaves = leaves
        self._gradients: list[tuple[Tensor | None, int]] = []

    def backward_done(self) -> None:
        """Remember the gradients that the non-finite loss left behind, and their versions."""
        self._gradients = [(leaf.grad, -1 if leaf.grad is None else leaf.grad._version) for leaf in self.leaves]

    def discarded(self) -> bool:
        """Whether nothing of those gradients is left."""
        if not self.leaves:
            return False
        return not any(map(_still_there, self.leaves, self._gradients))

    def concerns(self, parameters: list[Tensor]) -> bool:
        """Whether a step over `parameters` uses the gradients (also when no leaf could be found)."""
        mine = {id(p) for p in parameters}
        return not self.leaves or any(id(leaf) in mine for leaf in self.leaves)


def _still_there(leaf: Tensor, before: tuple[Tensor | None, int]) -> bool:
    now, (gradient, version) = leaf.grad, before
    if now is None or now is not gradient:
        return False
    if now._version == version:
        return True  # untouched, even where it is zero: a NaN loss may have zero gradients
    with torch_private.unseen():
        values = now.coalesce().values() if now.is_sparse else now
        return bool(torch.count_nonzero(values))


def leaves_of(loss: Any) -> list[Tensor]:
    """The leaf tensors that `backward()` on a loss will reach, by walking its graph."""
    roots = [t.grad_fn for t in (loss if isinstance(loss, (list, tuple)) else [loss]) if isinstance(t, Tensor)]
    waiting = [node for node in roots if node is not None]
    seen: set[object] = set()
    leaves: list[Tensor] = []
    while waiting and len(seen) < _MAX_NODES:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves.append(variable)
        waiting.extend(parent for parent, _ in node.next_functions if parent is not None)
    return leaves


def objective(tensors: Any, grad_tensors: Any) -> float | None:
    """The number that `backward(tensors, grad_tensors)` differentiates; None where there is none to read.

    Several losses are added up, and non-scalar ones are weighted by their `grad_tensors`; elements of weight zero do
    not count.
    """
    given = list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]
    weights = list(grad_tensors) if isinstance(grad_tensors, (list, tuple)) else [grad_tensors] * len(given)
    parts = []
    with torch_private.unseen():
        for tensor, weight in zip(given, weights, strict=False):
            part = _weighted(tensor, weight)
            if part is not None:
                parts.append(part)
    return sum(parts) if parts else None


def _weighted(tensor: Any, weight: Any) -> float | None:
    from pytest_nanstab.watching.measure import plain

    if not isinstance(tensor, Tensor) or tensor.is_complex():
        return None
    values = plain(tensor)
    if values is None or (weight is None and values.numel() != 1):
        return None
    if weight is None:
        return float(values.double().sum())
    if not isinstance(weight, Tensor) or weight.shape != tensor.shape or weight.is_complex():
        return None
    scale = plain(weight)
    if scale is None:
        return None
    product = values.double() * scale.double()
    return float(torch.where(scale == 0, torch.zeros_like(product), product).sum())
