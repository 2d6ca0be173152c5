"""Whether a function refers to torch, by its own code and that of the functions it names. Imports nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

_FUNCTIONS = (FunctionType, BuiltinFunctionType)
_DEPTH = 3  # from a test through helpers of helpers


def refers_to_torch(test: Any) -> bool:
    """Whether something of torch is named there: what a test without a model may still have computed with."""
    level, seen = [test], set[CodeType]()
    for _ in range(_DEPTH):
        fresh = [f for f in map(_unwrapped, level) if isinstance(f, FunctionType) and f.__code__ not in seen]
        seen.update(function.__code__ for function in fresh)
        named = [pair for function in fresh for pair in _named(function)]
        if any(name == "torch" or _is_of_torch(value) for name, value in named):
            return True
        level = [value for _, value in named if isinstance(value, FunctionType)]
    return False


def _unwrapped(value: Any) -> Any:
    value = getattr(value, "__func__", value)
    try:
        return inspect.unwrap(value)
    except ValueError:  # it wraps itself
        return value


def _named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The names in a function's code with what they stand for."""
    for name in _names(function.__code__):
        yield name, function.__globals__.get(name)
    with suppress(ValueError):  # a variable of the function around that is not assigned yet
        yield from inspect.getclosurevars(function).nonlocals.items()


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_of_torch(value: Any) -> bool:
    if isinstance(value, ModuleType):
        return value.__name__.partition(".")[0] == "torch"
    kind = value if isinstance(value, type) else type(value)
    kinds = (*inspect.getmro(kind), *((value,) if isinstance(value, _FUNCTIONS) else ()))
    homes = (getattr(kind, "__module__", None) for kind in kinds)
    return any(isinstance(home, str) and home.partition(".")[0] == "torch" for home in homes)
