"""A tracer around a watched region: switched on at a step, told which module and which optimizer is running."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pytest_nanstab.attribution.account import Known, retold
from pytest_nanstab.attribution.growth import Growth, explosion_in
from pytest_nanstab.attribution.history import Made
from pytest_nanstab.attribution.origin import home_of, origin_of
from pytest_nanstab.attribution.outliers import Outliers
from pytest_nanstab.attribution.rates import watch_groups
from pytest_nanstab.attribution.tracer import Tracer
from pytest_nanstab.watching import torch_private

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from pytest_nanstab.findings import Finding
    from pytest_nanstab.progress import Tell
    from pytest_nanstab.watching.names import Names
    from pytest_nanstab.watching.region import Region


class AbandonedError(BaseException):
    """A traced run has taken too long; nobody but whoever started it should catch this."""


class Tracing:
    """Traces the operations of a region from a training step on.

    Args:
        from_step: the first step that is traced, counted from 1; what came before runs untraced.
        deadline: when to give the run up, by `time.monotonic()`: it then raises `AbandonedError`.

    Attributes:
        growth: the sizes of parameters and gradients over the last steps, traced or not.
        outliers: the extremes of what outermost modules were fed with, traced or not.
        batch_size: the first size of what the outermost module was last called with.
        excused: whether the last finding it told came from numbers that only grew too large, or from what torch's own
            parametrizations do with a weight.
        tell: told at each step how far it is; None where nobody wants to know.
    """

    def __init__(self, from_step: int = 1, *, deadline: float | None = None) -> None:
        self.growth = Growth()
        self.outliers = Outliers()
        self.excused = False
        self.batch_size: int | None = None
        self.tell: Tell | None = None
        self._from_step = from_step
        self._deadline = deadline
        self._tracer = Tracer()
        self._region: Region | None = None
        self._last: Region | None = None
        self._handles: list[RemovableHandle] = []
        self._fed: list[tuple[str, Any]] = []  # what outermost modules were called with since the last step
        self._roots: list[nn.Module] = []  # kept alive: paths are looked up in them
        self._on = False
        self._eager: AbstractContextManager[Any] = nullcontext()

    @property
    def failed(self) -> str | None:
        """What went wrong inside the tracer, if anything."""
        return self._tracer.failed

    def start(self, region: Region) -> None:
        """The region has become active."""
        self._region = self._last = region
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        self._tracer.numpy.listen()
        if region.run.steps + 1 >= self._from_step:
            self._switch_on()

    def before_counting(self, region: Region) -> Callable[..., None]:
        """An optimizer step pre-hook for before the region's own."""

        def note(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
            self._note_inputs(region, region.run.steps + 1)

        return note

    def stop(self) -> None:
        """The region is left, or gives its place to an inner one."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._tracer.numpy.rest()
        if self._on:
            self._on = False
            torch_private.drop_mode(self._tracer)
            self._eager.__exit__(None, None, None)

    def forget(self) -> None:
        """Drop every reference to the user's objects."""
        self._tracer.forget()
        self._roots.clear()
        self._fed.clear()
        self.growth.forget()
        self._region = self._last = None

    def optimizer_made(self, optimizer: Any) -> None:
        """An optimizer has been constructed."""
        watch_groups(optimizer)

    def behind(self, tensors: Any) -> Made | None:
        """The record behind the first bad tensor of a pytree; None when nothing is traced, or nothing is bad."""
        if not self._on:
            return None
        from pytest_nanstab.watching import measure

        found = (self._tracer.behind(tensor) for _, tensor in measure.tensors_in(tensors))
        return next((made for made in found if made is not None), None)

    def behind_at_end(self, tensor: Tensor) -> Made | None:
        """The record behind a bad tensor, once the region is left."""
        return self._tracer.behind(tensor)

    def told_at_end(self, finding: Finding, made: Made) -> Finding | None:
        """The finding with its origin, once the region is left; None without a region."""
        return None if self._last is None else self.told(finding, made, self._last)

    def last_born(self) -> Made | None:
        """The record of the last bad result of good operands: where what an exception complains of may come from."""
        return self._tracer.born[-1] if self._tracer.born else None

    def told(self, finding: Finding, made: Made, region: Region) -> Finding:
        """The finding with its origin."""
        self._note_inputs(region, region.run.steps + 1)
        known = Known(
            region.names,
            self.batch_size,
            explosion_in(region.run, self.growth),
            optimizers_of(region),
            self.outliers.before(region.run.steps + 1),
        )
        origin = origin_of(made)
        first = home_of(origin.guilty)
        self.excused = origin.guilty.grew or first.place.in_utils
        return retold(finding, origin, known)

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _switch_on(self) -> None:
        region = self._region
        if self._on or region is None:
            return
        self._on = True
        self._handles += [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        # What is compiled runs eagerly under a dispatch mode only if it is told so.
        self._eager = _eager_stance()
        self._eager.__enter__()
        self._tracer.next_step(region.run.steps + 1)
        torch_private.add_mode(self._tracer)

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if not self._tracer.modules:
            if not any(module is root for root in self._roots):
                self._roots.append(module)
            self.batch_size = _batch_size(args)
            if self.batch_size is None:
                _ask_keywords(self, module)
            if module.training:
                self._fed.append((type(module).__name__, args))
        self._tracer.modules.append(module)

    def _leave_module(self, module: nn.Module, _args: Any, _output: Any) -> None:
        _pop(self._tracer.modules, module)

    def _before_step(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if self._tracer.optimizer is None:  # an optimizer inside another's step is part of that
            self._tracer.optimizer = optimizer

    def _note_inputs(self, region: Region, step: int) -> None:
        """What the outermost modules were fed with since the step before."""
        from pytest_nanstab.watching.fed import inputs_of  # that module imports this room

        seen = list(region.outputs.fed()) or [
            pair for module, args in self._fed for pair in inputs_of(module, args, None)
        ]
        self._fed.clear()
        with torch_private.unseen():
            self.outliers.note(step, seen)

    def _after_step(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        region = self._region
        if self._tracer.optimizer is not optimizer or region is None:
            return
        self._tracer.optimizer = None
        if self.tell is not None:
            self.tell(region.run.steps + 1)
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise AbandonedError("it took too long")
        with torch_private.unseen():
            self.growth.note(region, optimizer)
        self._tracer.numpy.step = region.run.steps + 1
        if self._on:
            self._tracer.next_step(region.run.steps + 1)
        elif region.run.steps + 1 >= self._from_step:
            self._switch_on()


def _eager_stance() -> AbstractContextManager[Any]:
    stance = getattr(torch.compiler, "set_stance", None)  # from torch 2.6 on
    if stance is None or "torch._dynamo" not in sys.modules:
        return nullcontext()
    manager: AbstractContextManager[Any] = stance("force_eager")
    return manager


def optimizers_of(region: Region) -> list[Any]:
    """The optimizers that took part in a region: those that stepped, else those constructed in it."""
    return list(region.state.known()) or list(region.constructed)


class LocalTrace:
    """A tracer for a block of code that runs inside somebody's hook: no hooks of optimizers are touched.

    Attributes:
        batch_size: the first size of what the outermost module was called with.
        leaf: the tensor whose gradient was found to be bad.
    """

    def __init__(self, names: Names) -> None:
        self.batch_size: int | None = None
        self.leaf: Tensor | None = None
        self._names = names
        self._tracer = Tracer()
        self._handles: list[RemovableHandle] = []
        self._eager = _eager_stance()

    @property
    def failed(self) -> str | None:
        """What went wrong inside the tracer, if anything."""
        return self._tracer.failed

    @property
    def step(self) -> int:
        """The training step that the block belongs to."""
        return self._tracer.step

    @step.setter
    def step(self, step: int) -> None:
        self._tracer.step = step

    def __enter__(self) -> LocalTrace:
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        self._eager.__enter__()
        torch_private.add_mode(self._tracer)
        self._tracer.numpy.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._tracer.numpy.rest()
        torch_private.drop_mode(self._tracer)
        self._eager.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()

    def behind(self, tensors: Any) -> Made | None:
        """The record behind the first bad tensor of a pytree."""
        from pytest_nanstab.watching import measure

        found = (self._tracer.behind(tensor) for _, tensor in measure.tensors_in(tensors))
        return next((made for made in found if made is not None), None)

    def forget(self) -> None:
        """Drop every reference to the user's objects."""
        self.leaf = None
        self._tracer.forget()

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        modules = self._tracer.modules
        if not modules:
            self._names.add(module)
            self.batch_size = _batch_size(args)
            if self.batch_size is None:
                _ask_keywords(self, module)
        modules.append(module)

    def _leave_module(self, module: nn.Module, _args: Any, _output: Any) -> None:
        _pop(self._tracer.modules, module)


def _batch_size(args: Any) -> int | None:
    first = next((arg for arg in args if isinstance(arg, Tensor) and arg.dim()), None)
    return None if first is None else first.shape[0]


def _ask_keywords(tracing: Tracing | LocalTrace, module: nn.Module) -> None:
    """Note the batch size when a call with keywords alone returns: torch's global hooks are not told of those."""
    if isinstance(module, torch.jit.ScriptModule):
        return

    def leave(_module: nn.Module, _args: Any, kwargs: Any, _output: Any = None) -> None:
        handle.remove()
        tracing.batch_size = _batch_size(kwargs.values())

    handle = module.register_forward_hook(leave, with_kwargs=True, always_call=True)


def _pop(modules: list[nn.Module], module: nn.Module) -> None:
    """Leave a module, and those inside it that were left by an exception."""
    while any(entered is module for entered in modules):
        if modules.pop() is module:
            break
