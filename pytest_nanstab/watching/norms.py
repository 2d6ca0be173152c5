"""Global gradient norms at every step, at the lowest price found (`benchmarks/overhead.py` measures it).

What costs in a small model is the number of calls into torch, so all its gradients are copied into one flat float32
buffer with one call, and one dot product follows. In a large one it is memory traffic: one pass per tensor.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pytest_nanstab.watching import measure, torch_private

_FLAT_ELEMENTS = 65_536
_CHECKED_FIRST, _CHECKED_EVERY = 3, 16
_dispatch_modes, _function_modes = torch_private.dispatch_modes, torch_private.function_modes
_foreach_copy = torch_private.foreach_copy


def gradient_state(parameters: Sequence[Tensor]) -> tuple[int, int]:
    """Something that changes when a gradient of these parameters is replaced or written to."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients or gradients[0].is_inference():
        return 0, 0
    return id(gradients[0]), sum(gradient._version for gradient in gradients)


class GradientNorm:
    """The global L2 norm of one optimizer's gradients, again and again.

    Attributes:
        parameters: all parameters of the optimizer.
        elements: how many numbers they are.
        backwards: the backward calls done when the optimizer was last judged.
        looked: the backward calls done when its gradients were last looked at right after one.
        thread: the thread in which the optimizer steps. No other one reads these gradients: torch replaces a gradient
            without asking who is reading it, and the process dies.
        by_hand: something was seen to change them behind the version counters of torch.
    """

    def __init__(self, parameters: list[Tensor], groups: Sequence[Mapping[str, Any]] = ()) -> None:
        self.parameters = parameters
        self._groups = [(group["params"], len(group["params"])) for group in groups]
        self.thread = threading.get_ident()
        self.backwards = self.looked = 0
        self._scale = 1.0
        self._exact: float | None = None
        self.by_hand = False
        self._uses = 0
        self._squared: float | None = None
        self._state: tuple[int, int, int] | None = None
        self._before: tuple[int, int, int] | None = None
        self._with: list[Tensor] = []  # the parameters that have a gradient, at the last look
        self._without: list[Tensor] = []
        self._buffer: Tensor | None = None
        self._views: list[Tensor] = []
        self.elements = sum(p.numel() for p in parameters if not is_lazy(p))
        self._small = all(map(_ordinary, parameters)) and 0 < self.elements <= _FLAT_ELEMENTS
        if self._small:
            self._make_buffer()

    def _make_buffer(self) -> None:
        self._with = [p for p in self.parameters if p.grad is not None]
        self._without = [p for p in self.parameters if p.grad is None]
        double = any(p.dtype is torch.float64 for p in self._with)
        sizes = [p.numel() for p in self._with]
        self._buffer = torch.zeros(sum(sizes), dtype=torch.float64 if double else torch.float32, device="cpu")
        pieces = torch.split(self._buffer, sizes)
        self._views = [piece.view(p.shape) for piece, p in zip(pieces, self._with, strict=True)]

    def fits(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether an optimizer's parameter groups look as they did: none came, went, grew or was given another list."""
        if len(groups) != len(self._groups):
            return False
        for group, (parameters, count) in zip(groups, self._groups, strict=True):
            if group["params"] is not parameters or len(parameters) != count:
                return False
        return True

    def glance(self, backwards: int) -> bool:
        """`look` for the common case of a healthy norm without a loss scale; False where it takes more."""
        squared = self.quick()
        if squared is None or self._before is not None or not squared < math.inf:
            return False
        self._squared, self._exact, self._scale = squared, None, 1.0
        self._state, self.looked = self._now(), backwards
        return True

    def look(self, backwards: int, scale: float) -> bool:
        """Note what a backward, the last of so many, has left: the raw gradient, whatever is done to it by hand later.

        `scale` is the loss scale that is on it. False when the backward has left these gradients alone.
        """
        state = self._now()
        if self._before is not None:
            before, self._before = self._before, None
            if state == before:
                self.looked = backwards if self.looked > self.backwards else self.looked
                return False  # it was another optimizer's backward
        self._state, self._scale, self._exact = state, scale, None
        self._squared = squared = self.quick()
        if squared is None or not squared < math.inf:
            self._exact = self.measure()
        self.looked = backwards
        return True

    @property
    def left(self) -> float | None:
        """The norm at the last look, in the units of the unscaled loss; None where nothing could be read."""
        if self._exact is not None:
            return self._exact / self._scale
        squared = self._squared
        return math.sqrt(squared) / self._scale if squared is not None and math.isfinite(squared) else None

    def mark(self) -> None:
        """A backward is coming that may leave these gradients alone."""
        self._before = self._now()

    def seen(self, backwards: int) -> float | None:
        """The square of the norm as `quick` has it, without a second pass where nothing has touched the gradients.

        None where something has, since the last backward: raw and received norm differ.
        """
        if self.looked != backwards:
            return self.quick()
        if self._squared is None or self._now() != self._state:
            return None
        if self.doubtful() and self.quick() != self._squared:
            self.by_hand = True
            return None
        return self._squared

    def received(self, backwards: int) -> float | None:
        """`measure`, without a second pass where nothing has touched the gradients since the last of the backwards."""
        if self.looked != backwards or self._exact is None or self._now() != self._state:
            return self.measure()
        if not self.doubtful():
            return self._exact
        now = self.measure()
        self.by_hand = self.by_hand or now != self._exact
        return now

    def doubtful(self) -> bool:
        """Whether what was seen before is to be measured again: writing through `.data` leaves no trace, so the first
        steps and every sixteenth are, and all of them once such a write was seen."""
        self._uses += 1
        return self.by_hand or self._uses <= _CHECKED_FIRST or self._uses % _CHECKED_EVERY == 0

    def _now(self) -> tuple[int, int, int] | None:
        """Something that changes when the first or the last gradient is replaced or written to, which is what a loop
        over all of them does; None where that cannot be told."""
        parameters = self._with or self.parameters
        try:
            first, last = parameters[0].grad, parameters[-1].grad
            return id(first), first._version, last._version  # type: ignore[union-attr]
        except (AttributeError, IndexError, RuntimeError):  # none there; inference tensors have no version
            return (*gradient_state(self.parameters), 0) if self.parameters else None

    def adopt(self, other: GradientNorm | None) -> None:
        """Take over what was seen of the same gradients before it was known whose they are."""
        if other is None or other.thread != self.thread:
            return
        mine, theirs = ({id(p) for p in norm.parameters if p.grad is not None} for norm in (self, other))
        if mine == theirs:
            self.looked, self._scale = other.looked, other._scale
            self._squared, self._exact = other._squared, other._exact

    def measure(self) -> float | None:
        """The norm now; NaN or Inf only when an element is. Parameters without a gradient count as zero.

        None when there are gradients and none of them can be read (meta tensors).
        """
        squared = self.quick()
        if squared is not None and math.isfinite(squared):
            return math.sqrt(squared)
        return global_norm([p.grad for p in self.parameters if p.grad is not None])

    def quick(self) -> float | None:
        """The square of the norm, or None where only `measure` can tell; NaN or Inf may be an overflow of squares."""
        buffer = self._buffer
        if buffer is None or _dispatch_modes() or _function_modes():
            return None
        if self._without and any(p.grad is not None for p in self._without):
            self._make_buffer()
            return None
        try:
            _foreach_copy(self._views, [p.grad for p in self._with])
        except (TypeError, RuntimeError):
            # A parameter lost its gradient, or has a sparse one: no flat copy of these.
            if self._small and any(p.grad is None for p in self._with):
                self._make_buffer()
            return None
        if buffer.requires_grad:
            # Gradients of a create_graph backward would tie the buffer to their graph.
            self._make_buffer()
            return None
        return buffer.dot(buffer).item()


def _ordinary(parameter: Tensor) -> bool:
    return (
        type(parameter) in (Tensor, torch.nn.Parameter)
        and parameter.is_cpu
        and parameter.is_floating_point()
        and parameter.layout is torch.strided
    )


def _squared(gradients: Sequence[Tensor]) -> float:
    """Sum of squares; NaN when a gradient is of a kind that only the exact measurement handles."""
    total, others = 0.0, []
    for gradient in gradients:
        if type(gradient) is not Tensor or gradient.layout is not torch.strided or gradient.requires_grad:
            return math.nan
        if torch_private.unreadable(gradient) or not gradient.is_floating_point():
            return math.nan
        if gradient.dtype in (torch.float32, torch.float64) and gradient.is_contiguous() and gradient.is_cpu:
            flat = gradient.view(-1)
            total += flat.dot(flat).item()
        else:
            others.append(gradient)
    return total + sum(map(_squared_others, _by_kind(others)))


def _by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(kinds.values())


def _squared_others(tensors: Sequence[Tensor]) -> float:
    """Sum of squares of tensors of one device and dtype, with one wait for the device."""
    wide = torch.float64 if tensors[0].dtype is torch.float64 else torch.float32
    norms = torch_private.foreach_norm(tensors, 2, wide)
    return float(torch.linalg.vector_norm(torch.stack(list(norms))).item()) ** 2


def global_norm(gradients: Sequence[Tensor]) -> float | None:
    """L2 norm over all gradients together, measured once; None when there are some and none can be read."""
    with torch_private.unseen():
        squared = _squared(gradients)
        return math.sqrt(squared) if math.isfinite(squared) else measure.exact_norm(gradients)


def norms_of(gradients: Sequence[Tensor]) -> list[float]:
    """The L2 norm of each gradient; squares that overflow are measured again without. 0 where nothing can be read."""
    found = [0.0] * len(gradients)
    with torch_private.unseen():
        plain: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
        for index, gradient in enumerate(gradients):
            values = measure.plain(gradient)
            if values is not None:
                plain.setdefault((values.device, values.dtype), []).append((index, values))
        for (_, dtype), members in plain.items():
            wide = torch.float64 if dtype is torch.float64 else torch.float32
            norms = torch.stack(list(torch_private.foreach_norm([values for _, values in members], 2, wide))).tolist()
            for (index, values), norm in zip(members, norms, strict=True):
                found[index] = norm if math.isfinite(norm) else measure.exact_norm([values]) or 0.0
    return found
