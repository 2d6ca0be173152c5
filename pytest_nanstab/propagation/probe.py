"""Observes one forward pass below autograd, and the gradients of the backward pass that follows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_nanstab.attribution import operations
from pytest_nanstab.attribution.history import storage_key
from pytest_nanstab.attribution.operations import Operation
from pytest_nanstab.attribution.places import place_of_call
from pytest_nanstab.propagation import shapes
from pytest_nanstab.propagation.passes import Op, Pass
from pytest_nanstab.watching import measure, torch_private


class Probe(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation while it is on.

    Results are known by their memory, so views need no record of their own. They are kept alive until `forget`: memory
    that is used again would stand for two results.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = Pass()
        self.modules: list[str] = []
        self._made: dict[int, Op] = {}
        self._weights: dict[int, frozenset[str]] = {}
        self._constant: set[int] = set()
        self._kept: list[Tensor] = []
        self._results: dict[int, tuple[Op, Tensor]] = {}  # by the operation's index
        for name, parameter in model.named_parameters():
            key = None if nn.parameter.is_lazy(parameter) else storage_key(parameter)
            if key is not None:
                self._weights[key] = self._weights.get(key, frozenset()) | {name}
        for buffer in model.buffers():
            key = None if nn.parameter.is_lazy(buffer) else storage_key(buffer)
            if key is not None:
                self._constant.add(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        about = operations.describe(func)
        if about.ignored or about.view or self.seen.failed is not None:
            return func(*args, **kwargs)
        tensors = [tensor for _, tensor in measure.tensors_in([args, list(kwargs.values())])]
        before = self._guarded(self._before, about, tensors) or (None, True)
        result = func(*args, **kwargs)
        outputs = [tensor for _, tensor in measure.tensors_in(result)]
        if outputs:
            self._guarded(self._record, about, args, tensors, outputs, before)
        return result

    def _guarded(self, look: Callable[..., Any], *args: Any) -> Any:
        """Look, and never let a tensor of an unknown kind break the user's forward pass: `failed` says what did."""
        if self.seen.failed is not None:
            return None
        try:
            return look(*args)
        except Exception as error:  # noqa: BLE001 - kept, and told in a note
            self.seen.failed = f"{type(error).__name__}: {error}".splitlines()[0]
            self.seen.ops.clear()
            return None

    def _before(self, about: Operation, tensors: list[Tensor]) -> tuple[float | None, bool]:
        """The size of the largest activation, before an operation in place changes it; whether all are finite."""
        if about.writes:
            self._hook_before_write(tensors)
        size, clean = None, True
        for tensor in tensors:
            key = storage_key(tensor)
            if key in self._weights or not tensor.is_floating_point() or not tensor.numel():
                continue
            own, finite = shapes.rms(tensor)
            clean = clean and finite
            if own is not None and (size is None or own > size):
                size = own
        return size, clean

    def _hook_before_write(self, tensors: list[Tensor]) -> None:
        """What is about to be overwritten will have another node: its gradient is asked for now."""
        for tensor in tensors:
            op = self._made.get(storage_key(tensor) or 0)
            if op is not None and tensor.requires_grad and not tensor.is_leaf:
                self._results.pop(op.index, None)
                listen(op, tensor)

    def _record(
        self,
        about: Operation,
        args: Any,
        tensors: list[Tensor],
        outputs: list[Tensor],
        before: tuple[float | None, bool],
    ) -> None:
        keys = [storage_key(tensor) for tensor in tensors]
        weights = frozenset().union(*(self._weights.get(key or 0, frozenset()) for key in keys))
        sources = tuple({op.index: op for key in keys if (op := self._made.get(key or 0)) is not None}.values())
        output = outputs[0]
        if not sources and weights and self._only_weights(tensors, keys):
            self._note_weights(outputs, weights)
            return
        place, _ = place_of_call()
        op = Op(
            index=len(self.seen.ops),
            name="relu6" if about.name == "hardtanh" and shapes.numbers(args) == (0.0, 6.0) else about.name,
            module=self.modules[-1] if self.modules else "",
            inside=bool(self.modules),
            spot=place.spot,
            shape=tuple(output.shape),
            weights=weights,
            sources=sources,
            raw=any(key not in self._made and key not in self._weights for key in keys),
            size_in=before[0],
            clean=before[1],
            numbers=shapes.numbers(args),
        )
        self.seen.ops.append(op)
        for number, tensor in enumerate(outputs):
            key = storage_key(tensor)
            if key is not None:
                self._made[key] = op
                self._weights.pop(key, None)
            self._kept.append(tensor)
            if not number and tensor.is_floating_point():
                shapes.describe(op, tensor, tensors)
                self._results[op.index] = (op, tensor)

    def _only_weights(self, tensors: list[Tensor], keys: list[int | None]) -> bool:
        """Whether nothing but parameters, what was made of them, and constants goes in: a parametrization."""
        floating = [key for tensor, key in zip(tensors, keys, strict=True) if tensor.is_floating_point()]
        whole = all(tensor.is_floating_point() for tensor in tensors)
        return whole and all(key in self._weights or key in self._constant for key in floating)

    def _note_weights(self, outputs: list[Tensor], weights: frozenset[str]) -> None:
        for tensor in outputs:
            key = storage_key(tensor)
            if key is not None:
                self._weights[key] = weights
            self._kept.append(tensor)

    def listen(self) -> None:
        """Ask for the gradient of every result: after the forward pass, when they have got their nodes."""
        for op, tensor in self._results.values():
            if tensor.requires_grad:
                listen(op, tensor)

    def forget(self) -> None:
        """Let go of all tensors."""
        self._kept.clear()
        self._results.clear()
        self._made.clear()


def listen(op: Op, tensor: Tensor) -> None:
    """Write the norm of the gradient that reaches a tensor into its operation."""
    op.trained = True

    def keep(gradient: Tensor | None) -> None:
        if gradient is None:  # the derivative of an integer result, which some decompositions hand out
            return
        with torch_private.unseen():
            norm = shapes.norm(gradient)
        op.gradient = norm if op.gradient is None else math.hypot(op.gradient, norm)

    tensor.register_hook(keep)  # type: ignore[no-untyped-call]


@contextmanager
def _named(model: nn.Module, probe: Probe) -> Iterator[None]:
    """Let the probe know which module runs."""
    handles = []

    def entering(path: str) -> Callable[..., None]:
        return lambda *_: probe.modules.append(path)

    def leaving(*_: Any) -> None:
        probe.modules.pop()

    try:
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # its calls are not seen one by one
                handles.append(module.register_forward_pre_hook(entering(path)))
                handles.append(module.register_forward_hook(leaving, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def observed(model: nn.Module, forward: Callable[[], Any]) -> Pass:
    """The pass that `forward()` makes through the model, and its backward pass from the scalar it returns.

    Gradients of parameters are left alone. A backward pass that torch refuses leaves the pass without gradients and
    says so in `failed`.
    """
    seen = _pass(model, forward, accumulate=False)
    if seen.failed is not None and "checkpoint" in seen.failed.lower() and not _has_own_hooks(model):
        return _pass(model, forward, accumulate=True)  # reentrant: .backward() or nothing
    return seen


def _has_own_hooks(model: nn.Module) -> bool:
    """Whether a gradient that arrives sets something off, such as a step."""
    return any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters())


def _pass(model: nn.Module, forward: Callable[[], Any], *, accumulate: bool) -> Pass:
    probe = Probe(model)
    try:
        with _named(model, probe), torch.enable_grad(), probe:
            result = forward()
        if probe.seen.failed is None:
            _differentiate(model, probe, result, accumulate=accumulate)
    finally:
        probe.forget()
    return probe.seen


def _gradients(result: Tensor, parameters: list[Tensor], *, accumulate: bool) -> list[Tensor | None]:
    if not accumulate:
        return list(torch.autograd.grad(result, parameters, allow_unused=True))
    before = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        result.backward()  # type: ignore[no-untyped-call]
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def _differentiate(model: nn.Module, probe: Probe, result: Any, *, accumulate: bool) -> None:
    seen = probe.seen
    if not isinstance(result, Tensor) or result.numel() != 1 or not result.requires_grad:
        seen.failed = "the forward pass gave no scalar that requires a gradient"
        return
    probe.listen()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and not nn.parameter.is_lazy(p)]
    try:
        gradients = _gradients(result, [p for _, p in named], accumulate=accumulate)
    except RuntimeError as error:
        seen.failed = str(error).strip().splitlines()[0]
        return
    with torch_private.unseen():
        for (name, _), gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                seen.gradients[name] = shapes.norm(gradient)
