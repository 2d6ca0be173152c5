"""Outermost module calls: is there a NaN in what comes out that was not in what went in?

A module is outermost when no other module's call is around it. While outputs are judged closely, a global forward
pre-hook sees each outermost call begin, takes itself away for its duration (so that the modules inside pay nothing and
`torch.compile` finds no hook there) and puts a forward hook on that one instance until the call returns. Once that has
cost more than its share of the time, known modules keep a hook that counts calls and judges a sample of them.
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
_SHARE = 0.01
_ALLOWANCE_NS = 1_000_000
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
    """The hook known modules keep between sampled calls; safe to copy, to pickle and to outlive its watch."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self.call = call

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.call is None:
            _drop(module, self)
        else:
            self.call(self, module, args, kwargs, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Counter:
        # A copy of a watched model is a model of the same test: it is counted like the original.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Counter, ()


def _drop(module: nn.Module, hook: _Counter) -> None:
    for key, candidate in list(module._forward_hooks.items()):
        if candidate is hook:
            del module._forward_hooks[key]
            module._forward_hooks_with_kwargs.pop(key, None)


class OutputWatch:
    """Judges outermost outputs of one region, in the thread that opened it."""

    def __init__(self, judge: Judge, *, dense: bool, only: nn.Module | None) -> None:
        self._judge = judge
        self._dense = dense
        self._only = only
        self._armed: RemovableHandle | None = None
        self._transient: RemovableHandle | None = None
        self._counted: list[tuple[weakref.ref[nn.Module], RemovableHandle]] = []
        self._counter = _Counter(self._count)
        self._thread = threading.get_ident()
        self._started = self._sampled_at = perf_counter_ns()
        self._own = self._calls = self._due = 0
        self._training: bool | None = None
        self.seen = 0

    def install(self) -> None:
        self._arm()

    def remove(self) -> None:
        """Take every hook away, wherever a call was interrupted."""
        self._disarm()
        self._end_call()
        self._counter.call = None
        for reference, handle in self._counted:
            handle.remove()
            module = reference()
            if module is not None:
                _drop(module, self._counter)
        self._counted.clear()

    def sample(self) -> None:
        """Look at the next outermost call, whichever module it is."""
        if self._transient is None:
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
        self._judge.first_call(module)
        self._transient = module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
        self._own += perf_counter_ns() - begun

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        self._end_call()
        begun = perf_counter_ns()
        try:
            self._look(module, args, kwargs, output)
        finally:
            now = perf_counter_ns()
            self._own += now - begun
            if self._always() or self._affordable(now):
                self._arm()
            else:
                self._count_from_now_on(module, now)

    def _always(self) -> bool:
        # In training the loss is judged at every step anyway; without gradients the output is the only sink.
        return self._dense and not torch.is_grad_enabled()

    def _affordable(self, now: int) -> bool:
        return self._own * _UNSEEN < _ALLOWANCE_NS + _SHARE * (now - self._started)

    def _look(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.seen += 1
        if output is None or (self._only is not None and module is not self._only):
            return
        path = measure.has_nan(output)
        if path is not None:
            self._judge.output_is_bad(Call(module, args, kwargs, output, path))

    def _count_from_now_on(self, module: nn.Module, now: int) -> None:
        self._training = module.training
        self._wait(now)
        if any(reference() is module for reference, _ in self._counted):
            return
        handle = module.register_forward_hook(self._counter, with_kwargs=True)
        self._counted.append((weakref.ref(module), handle))

    def _wait(self, now: int) -> None:
        """Set the number of calls to let pass so that judging stays within its share."""
        overdrawn = self._own * _UNSEEN - _ALLOWANCE_NS - _SHARE * (now - self._started)
        pause = max(overdrawn, 0) / _SHARE
        per_call = max((now - self._sampled_at) / max(self._calls, 1), 1_000.0)
        self._sampled_at, self._calls = now, 0
        self._due = min(max(int(pause / per_call), 8), 4096)

    def _count(self, hook: _Counter, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._calls += 1
        if self._calls < self._due and module.training is self._training and not self._always():
            return
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread or self._transient is not None:
            return
        self._training = module.training
        begun = perf_counter_ns()
        try:
            self._look(module, args, kwargs, output)
        finally:
            now = perf_counter_ns()
            self._own += now - begun
            self._wait(now)
            self._arm()
