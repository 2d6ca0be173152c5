"""Everything of torch that is not public, in one place; `tests/test_torch_private.py` fails clearly when it changes.

Each entry says what it is for and what happens without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn

# Counts of active Python modes: our own few operations must not be seen by a mode of the user's.
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
function_modes: Callable[[], int] = torch._C._len_torch_function_stack
# Tracing and functorch's wrappers: values there are symbols, not numbers.
tracing_state: Callable[[], object] = torch._C._get_tracing_state
is_functorch_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
# Many small copies in one call: a third of the cost of a call per tensor.
foreach_copy: Callable[..., None] = torch._foreach_copy_
# The norms of many tensors in one call.
foreach_norm: Callable[..., Sequence[Tensor]] = torch._foreach_norm


def modes_active() -> bool:
    """Whether a dispatch or function mode of anybody's is on."""
    return dispatch_modes() > 0 or function_modes() > 0


@contextmanager
def unseen() -> Iterator[None]:
    """Run our own operations past every active mode, and without recording gradients."""
    with torch.no_grad(), torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
        yield


def closure_cell(function: Callable[..., Any], name: str = "func") -> CellType | None:
    """The cell in which a decorated torch function keeps the function it wraps; None if there is none.

    `torch.nn.utils.clip_grad_norm_` and `clip_grad_value_` are wrapped once more by torch; swapping the wrapped
    function also reaches modules that did `from torch.nn.utils import clip_grad_norm_` before the watch began.
    """
    names = function.__code__.co_freevars
    cells = function.__closure__
    if cells is None or name not in names:
        return None
    return cells[names.index(name)]


def intercept(module: nn.Module, call: Callable[..., Any]) -> bool:
    """Let `call(*args, **kwargs)` run in place of one module's own call; False where the module is compiled in place.

    This is the slot of `nn.Module.compile()`: it costs a tenth of a forward hook, and copies and pickles of a module
    leave it behind. Without it, known modules would be judged at sampled calls only.
    """
    if module._compiled_call_impl is not None or type(module).__call__ is not nn.Module.__call__:
        return False
    module.__dict__["_compiled_call_impl"] = call
    return True


def release(module: nn.Module) -> None:
    """Undo `intercept`."""
    module.__dict__.pop("_compiled_call_impl", None)
