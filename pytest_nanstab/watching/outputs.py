"""Outermost module calls: is there a NaN in what comes out that was not in what went in?

A module is outermost when no other module's call is around it. While outputs are judged closely, a global forward
pre-hook sees each outermost call begin, takes itself away for its duration (so that the modules inside pay nothing and
`torch.compile` finds no hook there) and puts a forward hook on that one instance until the call returns. Once that has
cost more than its share of the time, known modules count their calls and a sample of these is judged; a call in another
mode (training or eval, with or without gradients) than the last is always judged.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pytest_nanstab.attribution.entered import AtHand, Entered, entered_from
from pytest_nanstab.attribution.source import put_in_by_the_test, user_spot
from pytest_nanstab.watching import measure, members, torch_private
from pytest_nanstab.watching.fed import Recent, bad_input, inputs_of
from pytest_nanstab.watching.pending import nodes_of

if TYPE_CHECKING:
    from pytest_nanstab.attribution.history import Made

# Judging outputs may take this share of the time watched so far, after a first allowance for short tests.
_SHARE = 0.005
_ALLOWANCE_NS = 1_000_000
# A module called this often keeps a hook: putting one on and off around every call costs more.
_OFTEN = 64
# So many outermost calls of a test are judged in any case: short tests must not depend on the machine's speed. With
# gradients on they only help to name bad data, since the loss is judged at every step.
_FIRST, _FIRST_IN_TRAINING = 32, 8
# After so many times that gradients were switched off and no module was called, it is no sign of an evaluation.
_MISSES = 32
# What the clock sees of our own work is about half of what it costs (cold caches, the call around it).
_UNSEEN = 2


class Judge(Protocol):
    """Who is told about a call that turned NaN-free input into NaN, or was fed NaN."""

    def output_is_bad(self, call: Call) -> None:
        """An outermost call returned a NaN."""

    def first_call(self, module: nn.Module) -> None:
        """An outermost module is about to be called."""


class Call:
    """One outermost call whose output holds a NaN."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Any, output: Any, path: str) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs
        self.spot = user_spot(3)
        self.output_path = path
        self.output_facts = _facts_at(output, path)
        self.input_path, self.input_facts, self.input_computed = bad_input(args, kwargs)
        with torch_private.unseen():
            self._nodes = [t.grad_fn for _, t in measure.tensors_in(output) if t.grad_fn is not None]
            self.in_graph = any(t.requires_grad for _, t in measure.tensors_in(output))
        self.is_meant = put_in_by_the_test()
        self.made: Made | None = None  # the traced operation behind the output
        self._output = output

    def take_output(self) -> Any:
        """The output, once: it is not kept."""
        output, self._output = self._output, None
        return output

    def feeds(self, loss: Any) -> bool:
        """Whether a loss was computed from the output."""
        return bool(self._nodes) and any(node in self._nodes for node in nodes_of(loss))


def _facts_at(output: Any, path: str) -> dict[str, Any]:
    for where, tensor in measure.tensors_in(output):
        if where == path:
            return measure.nonfinite_facts(tensor)
    return {}


class _Counter:
    """How many calls one known module has left until it is judged again.

    Attributes:
        in_trainer: whether a library called the function that calls the module.
        call: what `torch_private.intercept` puts in place of the module's own call; it holds no reference to it.
    """

    __slots__ = ("call", "calls", "due", "grad", "in_trainer", "looked_at", "module", "training")

    def __init__(self, module: nn.Module, look: Callable[..., None], recent: Recent, *, in_trainer: bool) -> None:
        self.module = weakref.ref(module)
        self.calls = self.due = 0
        self.looked_at = perf_counter_ns()
        self.in_trainer = in_trainer
        self.remember(module)
        self.call = self._make_call(type(module)._call_impl, look, recent)

    def remember(self, module: nn.Module) -> None:
        """Judge again as soon as the module is called in another mode than now."""
        self.training, self.grad = module.training, torch.is_grad_enabled()

    def _make_call(self, original: Callable[..., Any], look: Callable[..., None], recent: Recent) -> Callable[..., Any]:
        calls_by_key = recent.calls
        key, reference, calling = id(self), self.module, torch_private.calling_code
        traced, flags, grad_enabled = torch_private.traced, torch_private.compiler_flags, torch.is_grad_enabled
        frame = sys._getframe

        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if traced() or flags._is_compiling_flag:
                return original(reference(), *args, **kwargs)
            caller = frame(1)
            module: Any = caller.f_locals["self"] if caller.f_code is calling else reference()
            output = original(module, *args, **kwargs)
            self.calls = calls = self.calls + 1
            if calls >= self.due or module.training is not self.training or grad_enabled() is not self.grad:
                if module is reference():
                    look(self, module, args, kwargs, output)
            elif self.grad:
                entered = entered_from(caller) if self.in_trainer else None
                if recent.stepped:
                    calls_by_key[key] = reference, args, kwargs, entered
                else:
                    recent.note(key, reference, args, kwargs, entered)
            return output

        return call


# The numbers of the forward hooks that are on modules until their calls return.
TRANSIENT: set[int] = set()
# The watch that waits for the next outermost call: one at most.
_LISTENING: list[OutputWatch] = []


def _calling_frame() -> FrameType | None:
    """torch's frame that runs the hooks of a module's call, and then the call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != torch.nn.modules.module.__file__:
        frame = frame.f_back
    return frame


def _entering(module: nn.Module, _args: Any) -> None:
    """The global hook: one function for all watches, since a compiled function is compiled anew for another."""
    if not torch.compiler.is_compiling():
        for watch in tuple(_LISTENING):
            watch.enter(module)


class OutputWatch:
    """Judges outermost outputs of one region, in the thread that opened it."""

    def __init__(self, judge: Judge, *, dense: bool, only: nn.Module | None) -> None:
        self._judge = judge
        self._dense = dense
        self._only = only
        self._installed = False
        self._armed = False
        self._transient: RemovableHandle | None = None
        self._stale: list[RemovableHandle] = []  # their calls have returned
        self._call = 0  # the identity of the frame that runs the call with that hook
        self._counted: list[_Counter] = []
        self._misses = 0
        self.recent = Recent()
        self._thread = threading.get_ident()
        self._started = self._looked_at = self._paused = perf_counter_ns()
        self._own = 0
        self.seen = 0

    def install(self) -> None:
        """Begin, or go on after `remove`; the time in between does not count as watched."""
        idle = perf_counter_ns() - self._paused
        self._started += idle
        self._looked_at += idle
        self._installed = True
        self._arm()

    def remove(self) -> None:
        """Take every hook away, wherever a call was interrupted."""
        self._installed = False
        self._disarm()
        self._end_call()
        for counter in self._counted:
            module = counter.module()
            if module is not None:
                torch_private.release(module, counter.call)
        self._counted.clear()
        self._paused = perf_counter_ns()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Judge no call in the block."""
        was_installed, self._installed = self._installed, False
        try:
            yield
        finally:
            self._installed = was_installed

    def at_hand(self) -> AtHand:
        """What the next loss to be differentiated was probably computed from."""
        return AtHand(self._last_call(), self._entered())

    def _last_call(self) -> tuple[nn.Module, Any, Any] | None:
        """(module, arguments, keyword arguments) of the last outermost call with gradients on, if they are at hand."""
        return next(((module, args, kwargs) for module, args, kwargs, _ in self.recent.latest()), None)

    def fed(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that outermost calls with gradients on were fed with, by a name for people."""
        for module, args, kwargs, _ in reversed(list(self.recent.latest())):
            yield from inputs_of(type(module).__name__, args, kwargs)

    def _entered(self) -> Entered | None:
        """The user's function that a trainer has called and that made the last such call."""
        return next((entered for *_, entered in self.recent.latest() if entered is not None), None)

    def forget(self) -> None:
        """Drop the last references to something of the user's."""
        self._only = None
        self.recent.clear()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Without the global hook for as long as torch looks for such hooks."""
        was_armed = self._armed
        self._disarm()
        try:
            yield
        finally:
            if was_armed and self._installed:
                self._arm()

    def sample(self) -> None:
        """Look at the next outermost call, whichever module it is."""
        self._end_lost_call()
        if self._transient is None:
            self._arm()

    def gradients_off(self) -> None:
        """Somebody switched gradients off: probably an evaluation, perhaps of a module not seen so far."""
        self._end_lost_call()
        if not self._armed and self._transient is None and (self._dense or self._misses < _MISSES):
            self._misses += 1
            if torch_private.compiling_now() is None:  # a hook that comes up now would be compiled in
                self._arm()

    def evaluating(self) -> None:
        """A module was put in evaluation mode: it will be called, perhaps for the first time."""
        self._misses = 0
        self.gradients_off()

    @torch_private.past_modes
    def bad_data(self) -> tuple[str, str, dict[str, Any]] | None:
        """(field, name of the module, facts) of the NaN or +Inf that a training call of this step was fed."""
        for module, args, kwargs, _ in reversed(list(self.recent.latest())):
            path, facts, computed = bad_input(args, kwargs)
            if path is not None and not computed:
                return path, type(module).__name__, facts
        return None

    def _arm(self) -> None:
        if not self._armed:
            _LISTENING.append(self)
            self._armed = True
            torch_private.put_global_hook(_entering)

    def _disarm(self) -> None:
        if self._armed:
            _LISTENING.remove(self)
            self._armed = False
            torch_private.drop_global_hook(_entering)

    def _end_call(self) -> None:
        if self._transient is not None:
            self._stale.append(self._transient)
            self._transient = None
        for handle in self._stale:
            handle.remove()
            TRANSIENT.discard(handle.id)
        self._stale.clear()

    def _end_lost_call(self) -> None:
        """Notice that a call has ended without its hook: it was interrupted, or the user has cleared all hooks."""
        if self._transient is None or threading.get_ident() != self._thread:
            return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and id(frame) != self._call:
            frame = frame.f_back
        if frame is None:
            self._end_call()

    def _ours(self) -> bool:
        """Whether numbers computed here and now are to be judged."""
        if not self._installed or threading.get_ident() != self._thread:
            return False
        return torch_private.tracing_state() is None and not torch_private.functorch_active()

    def _known(self, module: nn.Module) -> bool:
        return any(counter.module() is module for counter in self._counted)

    def enter(self, module: nn.Module) -> None:
        """An outermost module is about to be called, or one of a script, or in another thread."""
        if isinstance(module, torch.jit.ScriptModule) or not self._ours():
            return
        begun = perf_counter_ns()
        self._disarm()
        if self._known(module):
            return
        if not torch.is_grad_enabled():
            self._misses = 0
        self._judge.first_call(module)
        self._call = id(_calling_frame())
        self._end_call()
        # A class may have a `register_forward_hook` of its own, for hooks of its own kind.
        with torch_private.numbered_apart():
            self._transient = nn.Module.register_forward_hook(module, self._leave, with_kwargs=True, always_call=True)
        TRANSIENT.add(self._transient.id)
        self._own += perf_counter_ns() - begun

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        __tracebackhide__ = True
        handle = self._transient
        if handle is None:
            return
        if output is None and next(reversed(module._forward_hooks)) != handle.id:
            # After an exception torch goes on with the hooks that come behind this one, and none may be taken away.
            self._stale.append(handle)
            self._transient = None
        else:
            self._end_call()
        begun = perf_counter_ns()
        try:
            self._look(module, args, kwargs, output)
        finally:
            now = perf_counter_ns()
            self._own += now - begun
            first = _FIRST_IN_TRAINING if torch.is_grad_enabled() else _FIRST
            closely = self.seen < first or (self.seen < _OFTEN and (self._always(module) or self._affordable(now)))
            if closely or (not self._keep_counting(module, output) and self._always(module)):
                self._arm()
            self._looked_at = now

    def _always(self, module: nn.Module) -> bool:
        # In training the loss is judged at every step anyway; in an evaluation the output is the only sink.
        return self._dense and not (torch.is_grad_enabled() and module.training)

    def _overdrawn(self, now: int) -> float:
        return self._own * _UNSEEN - _ALLOWANCE_NS - _SHARE * (now - self._started)

    def _affordable(self, now: int) -> bool:
        return self._overdrawn(now) < 0

    @torch_private.past_modes
    def _look(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        __tracebackhide__ = True
        self.seen += 1
        if torch.is_grad_enabled():
            self.recent.note(id(module), weakref.ref(module), args, kwargs, entered_from(sys._getframe()))
        if output is None or not self._watched(module):
            return
        path = measure.has_nan(output)
        if path is not None:
            self._judge.output_is_bad(Call(module, args, kwargs, output, path))

    def _watched(self, module: nn.Module) -> bool:
        """Whether this module's output is asked for; a wrapper around the one asked for counts as that."""
        if self._only is None or module is self._only:
            return True
        inside = members.children(module)
        return len(inside) == 1 and inside[0] is self._only

    @torch_private.past_modes
    def _keep_counting(self, module: nn.Module, output: Any) -> bool:
        """Count the calls of a known module; one that returns the loss needs none, `backward` looks at that."""
        with torch_private.past_subclass(output):
            is_loss = isinstance(output, torch.Tensor) and output.numel() == 1 and output.requires_grad
        if is_loss or self._known(module):
            return True
        counter = _Counter(module, self._count, self.recent, in_trainer=entered_from(sys._getframe()) is not None)
        if not torch_private.intercept(module, counter.call):
            return False
        self._counted.append(counter)
        self._wait(counter, module, perf_counter_ns(), self._looked_at)
        return True

    def _wait(self, counter: _Counter, module: nn.Module, now: int, since: int) -> None:
        """Set the number of calls to let pass so that judging stays within its share."""
        per_call = max((now - since) / max(counter.calls, 1), 1_000.0)
        pause = max(self._overdrawn(now), 0.0) / _SHARE / per_call
        counter.looked_at, counter.calls = now, 0
        counter.due = 0 if self._always(module) else min(int(pause), 4096)

    def _count(self, counter: _Counter, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A known module's call is due to be judged."""
        __tracebackhide__ = True
        if self._transient is not None or not self._ours():
            return
        counter.remember(module)
        if self._always(module):
            self._look(module, args, kwargs, output)
            return
        begun = perf_counter_ns()
        try:
            self._look(module, args, kwargs, output)
        finally:
            now = perf_counter_ns()
            self._own += now - begun
            self._wait(counter, module, now, counter.looked_at)
            self._arm()
