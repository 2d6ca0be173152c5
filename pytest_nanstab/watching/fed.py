"""What outermost modules were called with since the last optimizer step: at hand to repeat, gone with the step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from pytest_nanstab.watching import measure, torch_private

if TYPE_CHECKING:
    from pytest_nanstab.attribution.entered import Entered

# (weak reference to the module, arguments, keyword arguments), and the function of the user's, called by a trainer,
# that called it.
Fed = tuple[Callable[[], "nn.Module | None"], Any, Any, "Entered | None"]
_DEEPEST = 4  # containers in arguments that are held weakly


class Recent:
    """The calls with gradients on since the last optimizer step, the latest of each module.

    Before the first step, arguments are held weakly: a test that steps no optimizer may look at what it frees.

    Attributes:
        calls: by a key of the module.
        stepped: whether an optimizer has stepped.
    """

    def __init__(self) -> None:
        self.calls: dict[int, Fed] = {}
        self.stepped = False

    def note(
        self, key: int, module: Callable[[], nn.Module | None], args: Any, kwargs: Any, entered: Entered | None
    ) -> None:
        """A module has been called."""
        if not self.stepped:
            args, kwargs = _weakly(args), _weakly(kwargs)
        self.calls[key] = module, args, kwargs, entered

    def latest(self) -> Iterator[tuple[nn.Module, Any, Any, Entered | None]]:
        """(module, arguments, keyword arguments, entered) of the calls that are still there, the latest first."""
        for reference, args, kwargs, entered in reversed(list(self.calls.values())):
            module = reference()
            try:
                there = _strongly(args), _strongly(kwargs)
            except ReferenceError:
                continue
            if module is not None:
                yield module, *there, entered

    def clear(self) -> None:
        """An optimizer has stepped, or nothing is watched any more."""
        self.calls.clear()


class _Weak:
    """A weak reference in the place of an argument."""

    __slots__ = ("reference",)

    def __init__(self, value: Any) -> None:
        self.reference = TensorWeakRef(value) if isinstance(value, Tensor) else weakref.ref(value)


def _is_named(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def _of_kind(kind: type, parts: list[Any]) -> Any:
    return kind(parts) if kind in (tuple, list) else tuple.__new__(kind, parts)


def _weakly(value: Any, depth: int = 0) -> Any:
    """A value with weak references in place of the tensors and objects in it."""
    kind = type(value)
    if depth > _DEEPEST:
        return value
    if kind is tuple or kind is list or _is_named(kind):
        return _of_kind(kind, [_weakly(part, depth + 1) for part in value])
    if kind is dict:
        return {key: _weakly(part, depth + 1) for key, part in value.items()}
    try:
        return _Weak(value)
    except TypeError:  # numbers, texts
        return value


def _strongly(value: Any, depth: int = 0) -> Any:
    """The value again; raises ReferenceError where a part of it is gone."""
    kind = type(value)
    if kind is _Weak:
        there = value.reference()
        if there is None:
            raise ReferenceError
        return there
    if depth > _DEEPEST:
        return value
    if kind is tuple or kind is list or _is_named(kind):
        return _of_kind(kind, [_strongly(part, depth + 1) for part in value])
    return {key: _strongly(part, depth + 1) for key, part in value.items()} if kind is dict else value


def bad_input(args: Any, kwargs: Any) -> tuple[str | None, dict[str, Any], bool]:
    """Where what is handed to a module holds NaN or +Inf, what it looks like, and whether gradients flow through it.

    With a gradient it was computed from parameters, so it is no data.

    An input that holds -Inf and nothing else unusual is an additive attention mask, not bad data.
    """
    for path, tensor in _named_inputs(args, kwargs):
        seen = measure.extent(tensor)
        if seen is not None and (seen.has_nan or seen.high == float("inf")):
            facts = {**measure.nonfinite_facts(tensor), **measure.places_in_data(tensor)}
            with torch_private.past_subclass(tensor):
                return path, facts, tensor.grad_fn is not None
    return None, {}, False


def inputs_of(module: str, args: Any, kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors a module was called with, by names for people: "input 0 of Sequential"."""
    return ((f"{path} of {module}", tensor) for path, tensor in _named_inputs(args, kwargs))


def _named_inputs(args: Any, kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for index, value in enumerate(args):
        yield from measure.all_tensors_in(value, f"input {index}")
    for name, value in (kwargs or {}).items():
        yield from measure.all_tensors_in(value, name)
