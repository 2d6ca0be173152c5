"""The functions that run in every training step: closures, because attribute look-ups decide the cost of that path."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pytest_nanstab.attribution.constructions import record
from pytest_nanstab.watching import state, torch_private
from pytest_nanstab.watching.pending import objective

traced, compiles = torch_private.traced, torch_private.compiles

if TYPE_CHECKING:
    from pytest_nanstab.watching.region import Region


def backward_of(region: Region, original: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.autograd.backward` with a look at the loss before it."""
    dispatch_modes, function_modes = torch_private.dispatch_modes, torch_private.function_modes
    clips, scaling = region.gradients.clips, region.gradients.scaling
    look, norms = looking(region) if region.options.dense else None, region.state.norms
    inside = 0
    nested = torch_private.graph_task
    headroom = region.headroom
    stated = region.options.limits.get("max_loss")
    # Beyond the largest number there is only what is not finite, which needs a look in any case.
    bound = sys.float_info.max if stated is None else min(stated.value, sys.float_info.max)

    # The parameters as `Tensor.backward` gives them: handing on `*args, **kwargs` costs more than all the rest here.
    def backward(  # noqa: PLR0912 - a call for each case would show in the time of a step
        tensors: Any,
        grad_tensors: Any = None,
        retain_graph: Any = None,
        create_graph: Any = False,
        *others: Any,
        inputs: Any = None,
        **more: Any,
    ) -> Any:
        nonlocal inside
        if traced() or compiles() is not None:
            return as_it_is(tensors, grad_tensors, retain_graph, create_graph, *others, inputs=inputs, **more)
        run = with_rest(original, others, more) if others or more else original
        # A backward inside a backward (reentrant checkpointing) is part of the outer one.
        if not region.active or (inside and nested() != -1):
            return run(tensors, grad_tensors, retain_graph, create_graph, inputs=inputs)
        if (
            type(tensors) is Tensor
            and grad_tensors is None
            and not dispatch_modes()
            and not function_modes()  # these first: they would see a look at the tensor
            and tensors.is_cpu
            and tensors.numel() == 1
        ):
            try:
                value = tensors.item()
            except RuntimeError:  # a wrapper of functorch's: torch refuses this backward itself
                value = None
        else:
            value = objective(tensors, grad_tensors)
        if type(value) is float:
            region.loss = value = value if scaling.scale is None else scaling.loss(tensors, value)
            if headroom is not None:
                headroom.loss(tensors, value)
            if region.alert or not -bound <= value <= bound:
                region.before_backward(tensors, value)
        if clips.calls:
            clips.before_backward(region.backwards)
        if look is not None and (clips.calls or len(norms) != 1):
            region.gradients.coming()
        inside += 1
        try:
            result = run(tensors, grad_tensors, retain_graph, create_graph, inputs=inputs)
        finally:
            inside -= 1
            region.backwards += 1
            if region.alert:
                region.after_backward()
        if look is not None:
            look()
        return result

    as_it_is = torch_private.untraced(backward)
    return backward


def looking(region: Region) -> Callable[[], None]:
    """What looks at the gradients that a backward has left."""
    norms, scaling = region.state.norms, region.gradients.scaling
    here = threading.get_ident
    simple = region.details is None and region.headroom is None

    def look() -> None:
        # The common case: one optimizer, and nothing that changes what its gradients mean.
        if simple and len(norms) == 1 and scaling.scale is None:
            for norm in tuple(norms.values()):
                if norm.thread == here() and norm.glance(region.backwards):
                    return
        region.gradients.arrived()

    return look


def with_rest(original: Callable[..., Any], others: tuple[Any, ...], more: dict[str, Any]) -> Callable[..., Any]:
    """`torch.autograd.backward` for a call with its rarer arguments."""

    def run(*usual: Any, inputs: Any) -> Any:
        named = more if inputs is None else {**more, "inputs": inputs}
        return original(*usual, *others, **named)

    return run


def step_hook_of(region: Region) -> Callable[..., Any]:
    """The global optimizer step pre-hook: counts the step, and judges it when it is due."""
    run, norms = region.run, region.state.norms
    gradients = region.gradients
    clips, scaler = gradients.clips, gradients.scaling
    held, enclosing = region.state, torch_private.enclosing_step
    counting = region.counters.counters.active if region.counters is not None else ()
    add_loss, add_norm, add_clipped = run.loss.append, run.grad_norm.append, run.clipped_grad_norm.append
    recent = region.outputs.recent
    quick_enough = region.options.dense and not region.measures_more
    low, high = region.norm_bounds()
    squared_low, squared_high = low**2, high**2

    def count(optimizer: Any, norm: Any) -> None:
        __tracebackhide__ = True
        add_loss(region.loss)
        run.steps = step = run.steps + 1
        if region.pending is not None or norm is None:
            region.inspect(optimizer)
        elif (
            quick_enough
            and not clips.calls
            and not counting
            and scaler.scale is None
            and norm.fits(optimizer.param_groups)
        ):
            # The common step of an explicit test: nothing but a healthy norm within the limits.
            squared = norm.seen(region.backwards)
            if squared is not None and squared_low <= squared <= squared_high:
                size = squared**0.5
                add_norm(size)
                add_clipped(size)
                norm.backwards = region.backwards
                held.judged = step
            else:
                region.inspect(optimizer)
        elif step >= region.due:
            region.inspect(optimizer)
        recent.calls.clear()
        recent.stepped = True

    def before_step(optimizer: Any, args: Any, kwargs: Any) -> Any:
        __tracebackhide__ = True
        if traced() or compiles() is not None:
            return as_it_is(optimizer, args, kwargs)
        if not region.active:
            return None
        norm = norms.get(id(optimizer))
        # A subclass that calls its parent's step runs torch's hooks twice.
        if held.inner(optimizer) if norm is None else steps_twice(optimizer.__class__) and enclosing() is optimizer:
            region.guarded.settle()
            return None
        if len(args) > 1 or kwargs:
            judge = functools.partial(count, optimizer, norm)
            wrapped = with_closure(region, judge, args, kwargs) if takes_closure(optimizer.__class__) else None
            if wrapped is not None:
                return wrapped
        if scaler.scale is None or not region.fused_skip(optimizer):
            count(optimizer, norm)
        return None

    as_it_is = torch_private.untraced(before_step)
    return before_step


@functools.lru_cache(maxsize=256)
def takes_closure(kind: Any) -> bool:
    """Whether the first argument of a class's `step` is what computes the loss again: not a model, for example."""
    first = next(iter(list(inspect.signature(kind.step).parameters.values())[1:]), None)
    return first is not None and (first.name == "closure" or first.kind is first.VAR_POSITIONAL)


@functools.lru_cache(maxsize=256)
def steps_twice(kind: Any) -> bool:
    """Whether a class of optimizers and one of its parents both have a `step`, and torch's hooks around it."""
    return sum("step" in vars(cls) for cls in kind.__mro__) > 2  # one of them is `Optimizer`


def with_closure(
    region: Region, judge: Callable[[], None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any] | None:
    """New step arguments whose closure is judged after its first evaluation, before parameters change."""
    given = kwargs.get("closure") if "closure" in kwargs else (args[1] if len(args) > 1 else None)
    if not callable(given) or isinstance(given, nn.Module):
        return None
    evaluations = 0

    def closure(*a: Any, **k: Any) -> Any:
        nonlocal evaluations
        __tracebackhide__ = True
        result = given(*a, **k)
        evaluations += 1
        if not region.active:
            return result
        if evaluations == 1:
            region.closure = given
            try:
                judge()
            finally:
                region.closure = None
        else:
            # A line search may step through a bad trial point: what it leaves behind is judged, not the trial.
            region.drop_pending()
        return result

    functools.update_wrapper(closure, given)
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs


def clip_norm_of(region: Region) -> Callable[[Any], Any]:
    """`clip_grad_norm_`, recording what it saw."""
    from pytest_nanstab.watching.clips import as_list

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grad_norm_(parameters: Any, max_norm: float, norm_type: float = 2.0, *args: Any, **kwargs: Any) -> Any:
            if traced() or not region.active or (region.run.steps + 1 < region.due and region.pending is None):
                return original(parameters, max_norm, norm_type, *args, **kwargs)
            parameters, listed = as_list(parameters)
            if region.gradients.clips.calls:
                region.gradients.clips.coming()
            result = original(parameters, max_norm, norm_type, *args, **kwargs)
            if listed is not None:
                region.clipped()
                region.gradients.norm_clipped(listed, result, max_norm, norm_type)
            return result

        return clip_grad_norm_

    return make


def clip_value_of(region: Region) -> Callable[[Any], Any]:
    """`clip_grad_value_`, recording what it saw."""
    from pytest_nanstab.watching.clips import as_list

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grad_value_(parameters: Any, clip_value: float, *args: Any, **kwargs: Any) -> Any:
            if traced() or not region.active or (region.run.steps + 1 < region.due and region.pending is None):
                return original(parameters, clip_value, *args, **kwargs)
            parameters, listed = as_list(parameters)
            if region.gradients.clips.calls:
                region.gradients.clips.coming()
            raw = region.gradients.norm_before_clip(listed or [])
            result = original(parameters, clip_value, *args, **kwargs)
            if listed is not None:
                region.clipped()
                region.gradients.value_clipped(listed, raw, clip_value)
            return result

        return clip_grad_value_

    return make


def entering(region: Region) -> Callable[[Any], Any]:
    """`__enter__` of `torch.no_grad` and `torch.inference_mode`: an evaluation may begin."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        wake = region.outputs.gradients_off

        @functools.wraps(original)  # TorchScript compiles it, from the source it finds by this
        def enter(self: Any) -> Any:
            # inference_mode(False) switches nothing off
            if not traced() and region.active and getattr(self, "mode", True):
                wake()
            return original(self)

        return enter

    return make


def constructing(region: Region) -> Callable[[Any], Any]:
    """`Optimizer.__init__`, remembering which optimizers are constructed, and where."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            if traced():
                return
            record(self)
            region.constructed[self] = None
            if region.tracing is not None:
                region.tracing.optimizer_made(self)

        return initialise

    return make


def switching(region: Region) -> Callable[[Any], Any]:
    """`Module.train`: what is put in evaluation mode is about to be evaluated."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def train(self: Any, mode: bool = True) -> Any:
            if not traced() and region.active and not mode:
                region.outputs.evaluating()
            return original(self, mode)

        return train

    return make


def scaler_patches(region: Region) -> dict[str, Callable[[Any], Any]]:
    """Replacements for the methods of `torch.amp.GradScaler`, by name."""

    def scale(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, outputs: Any) -> Any:
            result = original(self, outputs)
            if region.active:
                region.gradients.scaled(self, outputs, result)
            return result

        return method

    def unscale_(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, optimizer: Any) -> None:
            original(self, optimizer)
            if region.active:
                region.gradients.unscaled(state.parameters_of(optimizer))

        return method

    def step(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            if not region.active or not self.is_enabled():
                return original(self, optimizer, *args, **kwargs)
            before = region.run.steps
            result = original(self, optimizer, *args, **kwargs)
            region.after_scaler_step(optimizer, stepped=region.run.steps > before)
            return result

        return method

    def update(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            if region.active:
                region.gradients.scaler_updated(self)

        return method

    methods = {"scale": scale, "unscale_": unscale_, "step": step, "update": update}

    def outside(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda original: outside_graphs(make(original))

    return {name: outside(make) for name, make in methods.items()}


def outside_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of ours that compiled code may call: it leaves its graph for it."""
    as_it_is = torch_private.untraced(function)

    def method(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return (as_it_is if traced() or compiles() is not None else function)(*args, **kwargs)

    return method
