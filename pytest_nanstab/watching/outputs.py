"""Outermost module calls: is there a NaN in what comes out that was not in what went in?

A module is outermost when no other module's call is around it. While outputs are judged closely, a global forward
pre-hook sees each outermost call begin, takes itself away for its duration (so that the modules inside pay nothing and
`torch.compile` finds no hook there) and puts a forward hook on that one instance until the call returns. Once that has
cost more than its share of the time, known modules count their calls and a sample of these is judged; a call in another
mode (training or eval, with or without gradients) than the last is always judged.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from pytest_nanstab.attribution.source import user_spot
from pytest_nanstab.watching import measure, torch_private

# Judging outputs may take this share of the time watched so far, after a first allowance for short tests.
_SHARE = 0.005
_ALLOWANCE_NS = 1_000_000
# A module called this often keeps a hook: putting one on and off around every call costs more.
_OFTEN = 64
# So many outermost calls of a test are judged in any case: short tests must not depend on the machine's speed.
_FIRST = 32
# After so many times that gradients were switched off and no module was called, it is no sign of an evaluation.
_MISSES = 32
# What the clock sees of our own work is about half of what it costs (cold caches, the call around it).
_UNSEEN = 2


class Judge(Protocol):
    """Who is told about a call that turned NaN-free input into NaN, or was fed NaN."""

    def output_is_bad(self, call: Call) -> None: ...

    def first_call(self, module: nn.Module) -> None: ...


class Call:
    """One outermost call whose output holds a NaN."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Any, output: Any, path: str) -> None:
        self.module = module
        self.spot = user_spot(3)
        self.in_graph = any(t.requires_grad for _, t in measure.tensors_in(output))
        self.output_path = path
        self.output_facts = _facts_at(output, path)
        self.input_path, self.input_facts = bad_input(args, kwargs)


def bad_input(args: Any, kwargs: Any) -> tuple[str | None, dict[str, Any]]:
    """Where data handed to a module holds NaN or +Inf, and what it looks like there.

    An input that holds -Inf and nothing else unusual is an additive attention mask, not bad data.
    """
    for path, tensor in _named_inputs(args, kwargs):
        seen = measure.extent(tensor)
        if seen is not None and (seen.has_nan or seen.high == float("inf")):
            return path, measure.nonfinite_facts(tensor)
    return None, {}


def _named_inputs(args: Any, kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for index, value in enumerate(args):
        yield from measure.tensors_in(value, f"input {index}")
    for name, value in (kwargs or {}).items():
        yield from measure.tensors_in(value, name)


def _facts_at(output: Any, path: str) -> dict[str, Any]:
    for where, tensor in measure.tensors_in(output):
        if where == path:
            return measure.nonfinite_facts(tensor)
    return {}


class _Counter:
    """How many calls known modules have left until one of them is judged again."""

    __slots__ = ("calls", "due", "grad", "training")

    def __init__(self) -> None:
        self.calls = self.due = 0
        self.training: bool | None = None
        self.grad: bool | None = None

    def remember(self, module: nn.Module) -> None:
        """Judge again as soon as the module is called in another mode than now."""
        self.training, self.grad = module.training, torch.is_grad_enabled()

    def calls_of(self, module: nn.Module, look: Callable[..., None]) -> Callable[..., Any]:
        """What `torch_private.intercept` calls in place of the module's own call; it holds no reference to the module."""
        reference = weakref.ref(module)
        original = type(module)._call_impl
        compiling, grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled

        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            module = reference()
            if compiling() or module is None:
                return original(module, *args, **kwargs)
            output = original(module, *args, **kwargs)
            self.calls += 1
            if self.calls >= self.due or module.training is not self.training or grad_enabled() is not self.grad:
                look(module, args, kwargs, output)
            return output

        return call


class OutputWatch:
    """Judges outermost outputs of one region, in the thread that opened it."""

    def __init__(self, judge: Judge, *, dense: bool, only: nn.Module | None) -> None:
        self._judge = judge
        self._dense = dense
        self._only = only
        self._armed: RemovableHandle | None = None
        self._transient: RemovableHandle | None = None
        self._counted: list[weakref.ref[nn.Module]] = []
        self._counter = _Counter()
        self._misses = 0
        self._thread = threading.get_ident()
        self._started = self._looked_at = self._paused = perf_counter_ns()
        self._own = 0
        self.seen = 0

    def install(self) -> None:
        """Begin, or go on after `remove`; the time in between does not count as watched."""
        idle = perf_counter_ns() - self._paused
        self._started += idle
        self._looked_at += idle
        self._arm()

    def remove(self) -> None:
        """Take every hook away, wherever a call was interrupted."""
        self._disarm()
        self._end_call()
        for reference in self._counted:
            module = reference()
            if module is not None:
                torch_private.release(module)
        self._counted.clear()
        self._paused = perf_counter_ns()

    def sample(self) -> None:
        """Look at the next outermost call, whichever module it is."""
        if self._transient is None:
            self._arm()

    def gradients_off(self) -> None:
        """Somebody switched gradients off: probably an evaluation, perhaps of a module not seen so far."""
        if self._armed is None and self._transient is None and self._misses < _MISSES:
            self._misses += 1
            self._arm()

    def _arm(self) -> None:
        if self._armed is None:
            self._armed = register_module_forward_pre_hook(self._enter)

    def _disarm(self) -> None:
        if self._armed is not None:
            self._armed.remove()
            self._armed = None

    def _end_call(self) -> None:
        if self._transient is not None:
            self._transient.remove()
            self._transient = None

    def _enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        if isinstance(module, torch.jit.ScriptModule) or torch_private.tracing_state() is not None:
            return
        begun = perf_counter_ns()
        self._disarm()
        if any(reference() is module for reference in self._counted):
            return
        if not torch.is_grad_enabled():
            self._misses = 0
        self._judge.first_call(module)
        self._transient = module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
        self._own += perf_counter_ns() - begun

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        __tracebackhide__ = True
        self._end_call()
        begun = perf_counter_ns()
        try:
            self._look(module, args, kwargs, output)
        finally:
            now = perf_counter_ns()
            self._own += now - begun
            if self.seen < _FIRST or self.seen < _OFTEN and (self._always() or self._affordable(now)):
                self._arm()
            else:
                self._keep_counting(module, output)
                self._wait(now)

    def _always(self) -> bool:
        # In training the loss is judged at every step anyway; without gradients the output is the only sink.
        return self._dense and not torch.is_grad_enabled()

    def _overdrawn(self, now: int) -> float:
        return self._own * _UNSEEN - _ALLOWANCE_NS - _SHARE * (now - self._started)

    def _affordable(self, now: int) -> bool:
        return self._overdrawn(now) < 0

    def _look(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        __tracebackhide__ = True
        self.seen += 1
        if output is None or (self._only is not None and module is not self._only):
            return
        path = measure.has_nan(output)
        if path is not None:
            self._judge.output_is_bad(Call(module, args, kwargs, output, path))

    def _keep_counting(self, module: nn.Module, output: Any) -> None:
        """Count the calls of a known module; one that returns the loss needs none, `backward` looks at that."""
        self._counter.remember(module)
        is_loss = isinstance(output, torch.Tensor) and output.numel() == 1 and output.requires_grad
        if is_loss or any(reference() is module for reference in self._counted):
            return
        if torch_private.intercept(module, self._counter.calls_of(module, self._count)):
            self._counted.append(weakref.ref(module))

    def _wait(self, now: int) -> None:
        """Set the number of calls to let pass so that judging stays within its share."""
        counter = self._counter
        per_call = max((now - self._looked_at) / max(counter.calls, 1), 1_000.0)
        pause = max(self._overdrawn(now), 0.0) / _SHARE / per_call
        self._looked_at, counter.calls = now, 0
        counter.due = 0 if self._always() else min(int(pause), 4096)

    def _count(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A known module's call is due to be judged."""
        __tracebackhide__ = True
        if threading.get_ident() != self._thread or self._transient is not None:
            return
        self._counter.remember(module)
        if self._always():
            self._look(module, args, kwargs, output)
            return
        begun = perf_counter_ns()
        try:
            self._look(module, args, kwargs, output)
        finally:
            now = perf_counter_ns()
            self._own += now - begun
            self._wait(now)
            self._arm()
