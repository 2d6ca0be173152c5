"""Global gradient norms at every step, at the lowest price found (`benchmarks/overhead.py` measures it).

What costs in a small model is the number of calls into torch, so all its gradients are copied into one flat float32
buffer with one call, and one dot product follows. In a large one it is memory traffic: one pass per tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pytest_nanstab.watching import measure, torch_private

_FLAT_ELEMENTS = 65_536


class GradientNorm:
    """The global L2 norm of one optimizer's gradients, again and again."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self._buffer: Tensor | None = None
        self._views: list[Tensor] = []
        if self._small():
            self._make_buffer()

    def _small(self) -> bool:
        ordinary = all(
            p.is_cpu and p.is_floating_point() and p.layout is torch.strided and type(p) in (Tensor, torch.nn.Parameter)
            for p in self.parameters
        )
        return ordinary and 0 < sum(p.numel() for p in self.parameters) <= _FLAT_ELEMENTS

    def _make_buffer(self) -> None:
        double = any(p.dtype is torch.float64 for p in self.parameters)
        sizes = [p.numel() for p in self.parameters]
        self._buffer = torch.zeros(sum(sizes), dtype=torch.float64 if double else torch.float32)
        pieces = torch.split(self._buffer, sizes)
        self._views = [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def measure(self) -> float:
        """The norm now; NaN or Inf only when an element is. Parameters without a gradient count as zero."""
        squared = self.quick()
        if squared is not None and math.isfinite(squared):
            return math.sqrt(squared)
        return global_norm([p.grad for p in self.parameters if p.grad is not None])

    def quick(self) -> float | None:
        """The square of the norm, or None where only `measure` can tell; NaN or Inf may be an overflow of squares."""
        buffer = self._buffer
        if buffer is None or torch_private.modes_active():
            return None
        try:
            torch_private.foreach_copy(self._views, [p.grad for p in self.parameters])
        except (TypeError, RuntimeError):
            # A parameter without a gradient, or a sparse one: no flat copy of these.
            return None
        if buffer.requires_grad:
            # Gradients of a create_graph backward would tie the buffer to their graph.
            self._make_buffer()
            return None
        return buffer.dot(buffer).item()


def _squared(gradients: Sequence[Tensor]) -> float:
    """Sum of squares; NaN when a gradient is of a kind that only the exact measurement handles."""
    total, others = 0.0, []
    for gradient in gradients:
        if type(gradient) is not Tensor or gradient.layout is not torch.strided or gradient.requires_grad:
            return math.nan
        if gradient.dtype in (torch.float32, torch.float64) and gradient.is_contiguous() and gradient.is_cpu:
            flat = gradient.view(-1)
            total += flat.dot(flat).item()
        else:
            others.append(gradient)
    if others:
        total += sum(norm.item() ** 2 for norm in torch_private.foreach_norm(others))
    return total


def global_norm(gradients: Sequence[Tensor]) -> float:
    """L2 norm over all gradients together, measured once."""
    with torch_private.unseen():
        squared = _squared(gradients)
        return math.sqrt(squared) if math.isfinite(squared) else measure.exact_norm(gradients)
