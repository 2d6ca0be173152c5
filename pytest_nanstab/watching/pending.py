"""A non-finite loss between its `backward()` and the step that would use its gradients."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pytest_nanstab.watching import torch_private
from pytest_nanstab.watching.measure import extent, plain
from pytest_nanstab.watching.patches import Patches

if TYPE_CHECKING:
    from pytest_nanstab.attribution.entered import AtHand
    from pytest_nanstab.attribution.history import Made

_MAX_NODES = 200_000


class PendingLoss:
    """A non-finite loss whose gradients no optimizer has used yet.

    It is discarded when its gradients are: cleared by `zero_grad`, replaced, or dropped by a step that was skipped.
    What its backward changed is found by comparing `candidates` before and after it, because the graph does not show
    parameters that a reentrant checkpoint hides.
    """

    def __init__(self, step: int, value: float, spot: tuple[str, int] | None, candidates: Iterable[Tensor]) -> None:
        self.step = step
        self.value = value
        self.spot = spot
        self.batch: object = None
        self.backwards = 0
        # (field, module, facts) of bad data it was computed from.
        self.data: tuple[str, str, dict[str, Any]] | None = None
        self.made: Made | None = None  # the traced operation behind it
        self.frames: list[FrameType] = []  # the user's functions that computed it: they may have returned by the step
        self.after_broken = False  # whether a parameter was not finite before it was differentiated
        self.at_hand: AtHand | None = None  # what it was computed from
        self.cleared = False
        self.thread = threading.get_ident()
        self._before: list[tuple[Tensor, Tensor | None, int]] | None = [
            (leaf, leaf.grad, _version(leaf.grad)) for leaf in {id(c): c for c in candidates}.values()
        ]
        self._touched: list[_Trace] = []

    def backward_done(self) -> None:
        """Remember the gradients that the non-finite loss left behind."""
        if self._before is None:
            return
        for leaf, gradient, version in self._before:
            now = leaf.grad
            if now is not None and (now is not gradient or _version(now) != version):
                self._touched.append(_Trace(leaf, now, _version(now)))
        self._before = None

    def clipped(self) -> None:
        """A clip has run: it may have written to the gradients, and discards none."""
        for trace in self._touched:
            trace.version = _version(trace.gradient)

    @property
    def may_be_judged(self) -> bool:
        """Whether its gradients may be read here: no other thread is at work on them."""
        others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        return self.thread not in others

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that got a gradient from it."""
        return [trace.leaf for trace in self._touched]

    def discarded(self, owned: set[int]) -> bool:
        """Whether nothing of those gradients is left for a step; `owned` are ids of what known optimizers step.

        An input that got a gradient too keeps it for ever, and means nothing.
        """
        if self._before is not None:  # another thread's backward, while this one's is still to come
            return False
        mine = [trace for trace in self._touched if id(trace.leaf) in owned]
        parameters = [trace for trace in self._touched if isinstance(trace.leaf, nn.Parameter)]
        return not any(trace.remains() for trace in mine or parameters or self._touched)

    def left_finite(self) -> bool:
        """Whether every gradient that it has left is finite."""
        seen = [None if trace.leaf.grad is None else extent(trace.leaf.grad) for trace in self._touched]
        return all(found is None or found.finite for found in seen)

    def broke_parameters(self) -> bool:
        """Whether a tensor that got a gradient from it is not finite now: something has used that gradient.

        One that is no parameter may have been bad before: data with a gradient.
        """
        leaves = [leaf for leaf in self.leaves if isinstance(leaf, nn.Parameter) or not self.after_broken]
        seen = [extent(leaf) for leaf in leaves]
        return any(found is not None and not found.finite for found in seen)

    def used_by(self, parameters: Sequence[Tensor]) -> bool | None:
        """Whether a step over `parameters` uses its gradients; None when they belong to other parameters."""
        mine = {id(p) for p in parameters}
        theirs = [trace for trace in self._touched if id(trace.leaf) in mine]
        if not theirs:
            return None if self._touched or not self.may_be_judged else True
        if self.cleared:
            return any(trace.remains() for trace in theirs)
        # Gradients made zero by hand go into the step all the same: `nan_to_num_` hides a loss, it does not skip it.
        return any(trace.leaf.grad is trace.gradient for trace in theirs)

    def watch_clearing(self, patches: Patches) -> None:
        """Notice a `zero_grad()` as long as `patches` last."""

        def make(original: Any) -> Any:
            def zero_grad(*args: Any, **kwargs: Any) -> Any:
                self.cleared = True
                return original(*args, **kwargs)

            return zero_grad

        patches.attribute(torch.optim.Optimizer, "zero_grad", make)
        patches.attribute(nn.Module, "zero_grad", make)


def _version(gradient: Tensor | None) -> int:
    return 0 if gradient is None or gradient.is_inference() else gradient._version


@dataclass
class _Trace:
    """A gradient that a non-finite loss left behind."""

    leaf: Tensor
    gradient: Tensor
    version: int

    def remains(self) -> bool:
        """Whether it is still there: untouched (a NaN loss may have zero gradients), or at least not zero."""
        if self.leaf.grad is not self.gradient:
            return False
        values = plain(self.gradient)
        return _version(self.gradient) == self.version or values is None or bool(torch.count_nonzero(values))


def nodes_of(loss: Any) -> Iterator[Any]:
    """The nodes of the graph that `backward()` on a loss, or several, will walk."""
    losses = loss if isinstance(loss, (list, tuple)) else [loss]
    waiting = [t.grad_fn for t in losses if isinstance(t, Tensor) and t.grad_fn is not None]
    seen: set[object] = set()
    while waiting and len(seen) < _MAX_NODES:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting.extend(parent for parent, _ in node.next_functions if parent is not None)


def leaves_of(loss: Any) -> list[Tensor]:
    """The leaf tensors that `backward()` on a loss will reach."""
    found = [getattr(node, "variable", None) for node in nodes_of(loss)]
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


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
