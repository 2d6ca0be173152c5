"""The user's function that a trainer called and that called a model: Lightning's `training_step`, `compute_loss`.

When the loss is judged that function has returned, and only the trainer's own frames are left. So its arguments are
remembered from the call of the model inside it until the optimizer steps: enough to call it once more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch

from pytest_nanstab.attribution.places import kind_of
from pytest_nanstab.attribution.source import variables_of

_MUTED = ("log", "log_dict", "log_metrics")  # what trainers write down of a step: once is enough


@dataclass(frozen=True)
class Entered:
    """A function of the user's that a library has called, with its arguments."""

    code: CodeType
    arguments: tuple[Any, ...]
    precision: tuple[tuple[str, torch.dtype], ...] = ()  # autocast, by device

    def function(self) -> Callable[..., Any] | None:
        """The function itself: a method of its first argument; None where it cannot be found."""
        owner = self.arguments[0] if self.arguments else None
        found = inspect.getattr_static(type(owner), self.code.co_name, None)
        plain = inspect.unwrap(found) if callable(found) else None
        return plain if getattr(plain, "__code__", None) is self.code else None

    def loss(self) -> Any:
        """What the function returns as its loss, called once more without writing anything down."""
        function = self.function()
        if function is None:
            return None
        attributes = vars(self.arguments[0])
        attributes.update({name: _nothing for name in _MUTED if hasattr(self.arguments[0], name)})
        with ExitStack() as contexts:
            for device, dtype in self.precision:
                contexts.enter_context(torch.autocast(device, dtype=dtype))
            returned = function(*self.arguments)
        if isinstance(returned, dict):
            return returned.get("loss")
        first = returned[0] if isinstance(returned, tuple) and returned else returned
        return getattr(first, "loss", first)


@dataclass(frozen=True)
class AtHand:
    """What can be called once more to see how a loss was computed.

    Attributes:
        call: (module, arguments, keyword arguments) of the last outermost call with gradients on.
        entered: the function of the user's, called by a trainer, that made it.
    """

    call: tuple[torch.nn.Module, Any, Any] | None
    entered: Entered | None


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a trainer's log."""


def entered_from(frame: FrameType | None) -> Entered | None:
    """The innermost user function around a frame, if a library other than torch has called it."""
    while frame is not None and kind_of(frame.f_code.co_filename) not in ("user", "runner"):
        frame = frame.f_back
    if frame is None or kind_of(frame.f_code.co_filename) == "runner":
        return None
    around = frame.f_back
    while around is not None and kind_of(around.f_code.co_filename) in ("torch", "functional", "stdlib", "ours"):
        around = around.f_back
    if around is None or kind_of(around.f_code.co_filename) != "library":
        return None
    code, values = frame.f_code, variables_of(frame)
    names = code.co_varnames[: code.co_argcount]
    if not all(name in values for name in names):
        return None
    casting = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    precision = tuple((device, torch.get_autocast_dtype(device)) for device in casting)
    return Entered(code, tuple(values[name] for name in names), precision)
