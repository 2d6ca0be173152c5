"""Everything of torch that is not public, in one place; `tests/test_torch_private.py` fails clearly when it changes.

Each entry says what it is for and what happens without it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import CellType, SimpleNamespace
from typing import Any, ParamSpec, TypeVar

import torch
import torch.utils._python_dispatch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

_P = ParamSpec("_P")
_R = TypeVar("_R")

# What this torch lacks of the names below.
MISSING: list[str] = []


def _private(path: str, otherwise: Any) -> Any:
    """torch's attribute at a dotted path, or `otherwise` where this torch has none."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            MISSING.append(path)
            return otherwise
    return found


def _copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _norm_each(tensors: Sequence[Tensor], order: float = 2, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [torch.linalg.vector_norm(tensor, order, dtype=dtype) for tensor in tensors]


# Counts of active Python modes: our own few operations must not be seen by a mode of the user's. Without them they are.
dispatch_modes: Callable[[], int] = _private("_C._len_torch_dispatch_stack", int)
function_modes: Callable[[], int] = _private("_C._len_torch_function_stack", int)
_disable_dispatch: Callable[[], AbstractContextManager[Any]] = _private(
    "utils._python_dispatch._disable_current_modes", nullcontext
)
_disable_function: Callable[[], AbstractContextManager[Any]] = _private("_C.DisableTorchFunction", nullcontext)
_disable_subclasses: Callable[[], AbstractContextManager[Any]] = _private(
    "_C.DisableTorchFunctionSubclass", nullcontext
)
_NOTHING_TO_DISABLE = nullcontext()
# Tracing, compiling and functorch's wrappers: values there are symbols. Without these, reading one may raise.
tracing_state: Callable[[], object] = _private("_C._get_tracing_state", lambda: None)
# `torch.compiler.is_compiling` in two parts, a constant to dynamo and a flag, which together cost half as much. Without
# the flag the function itself is asked.
_flag: Any = _private("compiler._is_compiling_flag", None) is not None
compiler_flags: Any = torch.compiler if _flag else SimpleNamespace(_is_compiling_flag=False)
traced: Callable[[], bool] = torch.compiler.is_dynamo_compiling if _flag else torch.compiler.is_compiling
# Where the ranks of the default process group leave messages for each other. Without it they are not exchanged.
group_store: Callable[[], Any] = (
    _private("distributed.distributed_c10d._get_default_store", lambda: None)
    if torch.distributed.is_available()
    else lambda: None
)
compiling_now: Callable[[], object] = _private("_guards.TracingContext.try_get", lambda: None)
functorch_active: Callable[[], bool] = _private("_C._are_functorch_transforms_active", bool)
is_functorch_wrapped: Callable[[Tensor], bool] = _private("_C._functorch.is_functorch_wrapped_tensor", lambda _: False)
# What compiles the functions that are called now: those that compiled code has left its graph for.
compiles: Callable[[], object] = _private("_C._dynamo.eval_frame.get_eval_frame_callback", lambda: None)
# Compiled code leaves its graph for such a function, and nothing in it is compiled; otherwise the hooks are, at length.
_disable_dynamo: Any = _private("_disable_dynamo", lambda function: function)
# Many small copies in one call: a third of the cost of a call per tensor.
foreach_copy: Callable[..., None] = _private("_foreach_copy_", _copy_each)
# The norms of many tensors in one call.
foreach_norm: Callable[..., Sequence[Tensor]] = _private("_foreach_norm", _norm_each)
# The code that calls what `intercept` sets; `self` in its frame is the module that was called.
calling_code: Any = _private("nn.Module._wrapped_call_impl.__code__", None)
# The code around every optimizer's step, which runs the step hooks.
_stepping_code: Any = torch.optim.Optimizer.profile_hook_step(lambda _: None).__code__


def modes_active() -> bool:
    """Whether a dispatch or function mode of anybody's is on."""
    return dispatch_modes() > 0 or function_modes() > 0


@contextmanager
def unseen() -> Iterator[None]:
    """Run our own operations past every active mode, and without recording gradients."""
    with _disable_function(), torch.set_grad_enabled(False), _disable_dispatch():
        yield


def past_subclass(tensor: Any) -> AbstractContextManager[Any]:
    """Look at a tensor without asking the `__torch_function__` of its class, which may refuse or count it."""
    return _NOTHING_TO_DISABLE if type(tensor) in (Tensor, nn.Parameter) else _disable_subclasses()


def past_modes(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function of ours past the user's modes; at no cost worth mentioning when there is none."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        __tracebackhide__ = True
        if not modes_active():
            return function(*args, **kwargs)
        with unseen():
            return function(*args, **kwargs)

    return run


def unreadable(tensor: Tensor) -> bool:
    """Whether a tensor holds no number that may be read now.

    It has no storage, is a symbol or one of the zeros that forward-mode differentiation makes without memory, or a CUDA
    graph is being captured.
    """
    if tensor.is_meta or is_functorch_wrapped(tensor) or tensor._is_zerotensor():
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def acts_on_arrival(parameter: Tensor) -> bool:
    """Whether somebody's hook runs when a gradient has been accumulated; without this a repetition would run it too."""
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None))


def closure_cell(function: Callable[..., Any], name: str = "func") -> CellType | None:
    """The cell in which a decorated torch function keeps the function it wraps; None if there is none.

    `torch.nn.utils.clip_grad_norm_` and `clip_grad_value_` are wrapped once more by torch; swapping the wrapped
    function also reaches modules that did `from torch.nn.utils import clip_grad_norm_` before the watch began.
    """
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None)
    if code is None or cells is None or name not in code.co_freevars:
        return None
    cell: CellType = cells[code.co_freevars.index(name)]
    return cell


def enclosing_step() -> Any:
    """The optimizer around the one whose step is about to run: a wrapper such as Lookahead; None without one."""
    frame, steps = sys._getframe(1), 0
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is _stepping_code:
            steps += 1
            if steps > 1:
                return frame.f_locals["args"][0]
    return None


def hide_hooks(patches: Any, hidden: Callable[[], AbstractContextManager[None]]) -> None:
    """Let torch ask for global module hooks as if ours were not there: `torch.compile` warns about any."""
    module = torch.nn.modules.module
    if not hasattr(module, "_has_any_global_hook"):
        return

    def make(original: Callable[[], Any]) -> Callable[[], Any]:
        def has_any_global_hook() -> Any:
            with hidden():
                return original()

        return has_any_global_hook

    patches.attribute(module, "_has_any_global_hook", make)


@functools.lru_cache(maxsize=256)
def has_own_step(kind: Any) -> bool:
    """Whether a class of optimizers has a `step` that torch did not write."""
    home = next(cls for cls in kind.__mro__ if "step" in vars(cls))
    return not home.__module__.startswith("torch.")


def hide_in_copies(patches: Any, ids: Set[int]) -> None:
    """Let a module be copied or pickled, by itself in its own forward, without the forward hooks of these numbers."""
    names = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")

    def make(original: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        def state_of(module: Any) -> dict[str, Any]:
            state = original(module)
            if any(number in state.get(names[0], ()) for number in ids):
                for name in names:
                    hooks = state.get(name, {})
                    state[name] = type(hooks)((number, hook) for number, hook in hooks.items() if number not in ids)
            return state

        return state_of

    patches.attribute(nn.Module, "__getstate__", make)


# -- hooks with numbers of their own ---------------------------------------------------------------------------------

_APART = 2**40  # nobody registers so many


@contextmanager
def numbered_apart() -> Iterator[None]:
    """Let the user's hooks get the numbers that they would have without ours; without this they get later ones."""
    global _APART
    theirs, RemovableHandle.next_id = RemovableHandle.next_id, _APART
    try:
        yield
    finally:
        _APART, RemovableHandle.next_id = RemovableHandle.next_id, theirs


register_step_pre_hook = numbered_apart()(register_optimizer_step_pre_hook)
register_step_post_hook = numbered_apart()(register_optimizer_step_post_hook)

# -- a global hook that comes and goes ---------------------------------------------------------------------------------

_global_pre_hooks: Any = _private("nn.modules.module._global_forward_pre_hooks", None)
_handles: dict[Any, Any] = {}


def put_global_hook(hook: Callable[..., Any]) -> None:
    """Register a global forward pre-hook, each time under the number that it had before.

    A compiled function that calls modules is compiled anew when the numbers of global hooks change. Without this it is
    so each time that the hook comes back.
    """
    handle = _handles.get(hook)
    if handle is None or _global_pre_hooks is None:
        with numbered_apart():
            _handles[hook] = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    else:
        _global_pre_hooks[handle.id] = hook


def drop_global_hook(hook: Callable[..., Any]) -> None:
    """Take a global hook away again."""
    _handles[hook].remove()


# -- outside of graphs -------------------------------------------------------------------------------------------------


def untraced(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function for where `traced()`, or `compiles()` is not None: nothing in it is compiled. Loads dynamo."""

    # One of its own: of a function that it is told to leave alone, dynamo may look into what is called.
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return function(*args, **kwargs)

    wrapped: Callable[_P, _R] = _disable_dynamo(run)
    return wrapped


# -- a cheap hook on one module's calls --------------------------------------------------------------------------------


def intercept(module: nn.Module, call: Callable[..., Any]) -> bool:
    """Let `call(*args, **kwargs)` run in place of one module's own call; False where that is not possible.

    This is the slot of `nn.Module.compile()`: it costs a tenth of a forward hook, and copies and pickles of a module
    leave it behind, unless its class has its own idea of its state. Shallow copies made by hand (`new.__dict__ =
    old.__dict__.copy()`, as meta-learning libraries and `nn.DataParallel` do) take it with them: `call` must find out
    from the frame of `calling_code` whose call it is. Without all this, known modules are judged at sampled calls only.
    """
    kind = type(module)
    if calling_code is None or module._compiled_call_impl is not None or kind.__call__ is not nn.Module.__call__:
        return False
    if kind.__getstate__ is not nn.Module.__getstate__ or kind.__reduce_ex__ is not object.__reduce_ex__:
        return False
    if kind.__reduce__ is not object.__reduce__ or hasattr(kind, "__deepcopy__"):
        return False
    module.__dict__["_compiled_call_impl"] = call
    return True


def release(module: nn.Module, call: Callable[..., Any]) -> None:
    """Undo `intercept`, unless somebody has put a compiled call there since."""
    if module.__dict__.get("_compiled_call_impl") is call:
        del module.__dict__["_compiled_call_impl"]


# -- which autograd node -----------------------------------------------------------------------------------------------

# The node whose backward is running, and the number that the next node made in this thread will get: together they
# lead from an operation of the backward pass to the forward operation it belongs to. Without them a fault born in a
# derivative is named by its node, without the user's line.
current_node: Callable[[], Any] = _private("_C._current_autograd_node", lambda: None)
# Whether a backward is running around this call, in whichever thread: -1 is none. Without it a backward that begins
# while another thread's is running is taken for a part of that.
graph_task: Callable[[], int] = _private("_C._current_graph_task_id", int)
next_sequence_number: Callable[[], int] = _private("_C._autograd._get_sequence_nr", int)

# -- a dispatch mode that is no block of code --------------------------------------------------------------------------


def add_mode(mode: Any) -> None:
    """Switch a dispatch mode on until `drop_mode`: a watch begins and ends inside other people's functions."""
    mode.__enter__()


def drop_mode(mode: Any) -> None:
    """Switch a dispatch mode off, wherever it lies among those that others have switched on since."""
    pop, push = torch.utils._python_dispatch._pop_mode, torch.utils._python_dispatch._push_mode
    above = []
    while dispatch_modes():
        top = pop()
        if top is mode:
            push(mode)
            mode.__exit__(None, None, None)
            break
        above.append(top)
    for other in reversed(above):
        push(other)
