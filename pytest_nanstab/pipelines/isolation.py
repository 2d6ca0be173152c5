"""Runs that leave no trace: a pipeline that learns, counts or caches is as it was before, functions included.

An object is copied. A function cannot be: what it keeps lies in its closure, in the globals it names and in the objects
it is bound to. These stay the same objects, and hold copies of their contents for the time of a run.
"""

from __future__ import annotations

import copy
import dis
import inspect
import random
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from pytest_nanstab.attribution.source import is_user_file
from pytest_nanstab.checks._leaves import attributes_of, is_users_class, library, slots_of

_MOST_VALUES = 1_000_000  # a larger array is data, not something that a pipeline keeps from batch to batch
_DEPTH = 4  # of functions that call functions
_FUNCTIONS = (types.FunctionType, types.MethodType, partial)
# Machinery that a closure may hold: no pipeline keeps data in it, and a copy would drag a whole session along.
_NOT_KEPT = frozenset({"_pytest", "pytest", "pytest_nanstab", "hypothesis", "logging", "threading", "multiprocessing"})
_PLAIN = (str, bytes, int, float, complex, bool, type(None), types.ModuleType, types.BuiltinFunctionType)
_HOLDERS = (list, dict, set, deque, np.ndarray, torch.Tensor)
GENERATORS = (np.random.Generator, np.random.RandomState, torch.Generator, random.Random)
# What a deep copy raises of locks, open files, generators and tensors with history.
_UNCOPYABLE = (TypeError, RuntimeError, NotImplementedError, AttributeError, ValueError)


def clone(pipeline: Any) -> Any:
    """A fresh copy, so that no run sees what an earlier one learned; what cannot be copied is used as it is."""
    try:
        return copy.deepcopy(pipeline)
    except _UNCOPYABLE:
        return _copied_in_parts(pipeline)


def _copied_in_parts(pipeline: Any) -> Any:
    """A shallow copy with a copy of each attribute that has one: a lock is shared, statistics beside it are not."""
    try:
        fresh = copy.copy(pipeline)
    except _UNCOPYABLE:
        return pipeline
    for name, value in attributes_of(pipeline).items():
        object.__setattr__(fresh, name, _copied(value, {}))
    return fresh


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy; what has none, a lock or an open file, is shared."""
    try:
        return copy.deepcopy(value, memo)
    except _UNCOPYABLE:
        return value


def is_function(pipeline: object) -> bool:
    """Whether a pipeline is a function, a bound method or a partial of one."""
    return isinstance(pipeline, _FUNCTIONS)


class Kept:
    """What a function can keep from call to call."""

    def __init__(self, pipeline: Any) -> None:
        self.objects: dict[int, Any] = {}
        self._cells: dict[int, Any] = {}
        self._names: dict[tuple[int, str], dict[str, Any]] = {}
        self._seen: set[int] = set()
        self._rebinds = False
        # An object itself is copied; what it shares with others is not.
        self._add(pipeline if is_function(pipeline) else type(pipeline), _DEPTH)

    @property
    def anything(self) -> bool:
        """Whether a later call can come out otherwise than the first: an object is held, or a name is bound anew."""
        return bool(self.objects) or self._rebinds

    def held(self) -> list[Any]:
        """The objects that a function names, closes over or is bound to."""
        return list(self.objects.values())

    def _add(self, node: Any, depth: int) -> None:
        if id(node) in self._seen or depth < 0:
            return
        self._seen.add(id(node))
        if isinstance(node, type):
            self._add_class(node, depth - 1)
            return
        if isinstance(node, _PLAIN):
            return
        if isinstance(node, partial):
            for part in (node.func, *node.args, *node.keywords.values()):
                self._add(part, depth)
        elif isinstance(node, types.MethodType):
            self._add(node.__self__, depth)
            self._add(node.__func__, depth)
        elif isinstance(node, types.FunctionType):
            self._add_function(inspect.unwrap(node), depth - 1)
        elif isinstance(node, torch.nn.Module) and _size(node) > _MOST_VALUES:
            self.objects.update((id(buffer), buffer) for buffer in node.buffers())
        elif library(node) not in _NOT_KEPT:
            self.objects[id(node)] = node

    def _add_class(self, kind: type, depth: int) -> None:
        """What a class of the user's keeps for all of its objects, and what its methods keep."""
        if not is_users_class(kind):
            return
        for name, value in vars(kind).items():
            if isinstance(value, _HOLDERS) and not name.startswith("__"):
                self.objects[id(value)] = value
            elif isinstance(value, types.FunctionType):
                self._add_function(value, depth)

    def _add_function(self, function: Any, depth: int) -> None:
        if not isinstance(function, types.FunctionType) or not is_user_file(function.__code__.co_filename):
            return
        self._rebinds |= any(_rebinds(code) for code in _codes_in(function.__code__))
        for cell in function.__closure__ or ():
            self._cells[id(cell)] = cell
            self._add(_contents(cell), depth)
        for name in _names_in(function.__code__):
            if name in function.__globals__:
                self._names[id(function.__globals__), name] = function.__globals__
                self._add(function.__globals__[name], depth)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._add(default, depth)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Everything holds a copy of its contents inside, and its own contents again afterwards."""
        cells = [(cell, _contents(cell)) for cell in self._cells.values()]
        names = [(space, name, space[name]) for (_, name), space in self._names.items() if name in space]
        with ExitStack() as stack:
            for node in self.objects.values():
                put_back = _lent_copy(node, dict(self.objects))
                if put_back is not None:
                    stack.callback(put_back)
            try:
                yield
            finally:
                for cell, value in cells:
                    if value is not _EMPTY and _contents(cell) is not value:
                        cell.cell_contents = value
                for space, name, value in names:
                    if space.get(name) is not value:
                        space[name] = value


_EMPTY = object()


def _size(module: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _EMPTY


def _names_in(code: types.CodeType) -> Iterator[str]:
    """The globals a function names, those of its inner functions too."""
    for inner in _codes_in(code):
        yield from inner.co_names


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes_in(constant)


def _rebinds(code: types.CodeType) -> bool:
    """Whether a function binds a global, or a name of the function around it, anew."""
    return any(
        step.opname == "STORE_GLOBAL" or (step.opname == "STORE_DEREF" and step.argval in code.co_freevars)
        for step in dis.get_instructions(code)
    )


def _lent_copy(node: Any, memo: dict[int, Any]) -> Callable[[], None] | None:
    """Give `node` a copy of its contents; returns what gives it its own again, None where it keeps nothing."""
    if isinstance(node, (torch.Tensor, np.ndarray)):
        return _of_values(node)
    if isinstance(node, GENERATORS):
        return _of_generator(node)
    if isinstance(node, (list, set, dict, deque)):
        return _of_container(node, memo)
    own = getattr(node, "__dict__", None)
    try:
        if type(own) is not dict:
            return _of_slots(node, memo)
        node.__dict__ = {key: _copied(value, memo) for key, value in own.items()}
    except _UNCOPYABLE:  # an object that lets nobody set its attributes
        return None
    return partial(_set_dict, node, own)


def _set_dict(node: Any, own: dict[str, Any]) -> None:
    node.__dict__ = own


def _of_values(node: Any) -> Callable[[], None] | None:
    size = node.numel() if isinstance(node, torch.Tensor) else node.size
    if size > _MOST_VALUES:
        return None
    if isinstance(node, np.ndarray):
        if not node.flags.writeable or node.dtype.hasobject:
            return None
        before = node.copy()
        return lambda: np.copyto(node, before)
    if node.device.type == "meta" or node.layout is not torch.strided:
        return None
    values = node.detach().clone()

    def put_back() -> None:
        if not torch.equal(node.detach(), values):  # writing would change the version that autograd counts
            with torch.no_grad():
                node.copy_(values)

    return put_back


def _of_generator(node: Any) -> Callable[[], None]:
    """Each run draws the same numbers."""
    if isinstance(node, np.random.Generator):
        return partial(setattr, node.bit_generator, "state", copy.deepcopy(node.bit_generator.state))
    if isinstance(node, random.Random):
        return partial(node.setstate, node.getstate())
    return partial(node.set_state, node.get_state())


def _of_slots(node: Any, memo: dict[int, Any]) -> Callable[[], None] | None:
    before = slots_of(node)
    if not before:
        return None
    _set_slots(node, {name: _copied(value, memo) for name, value in before.items()})
    return partial(_set_slots, node, before)


def _set_slots(node: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(node, name, value)


def _of_container(node: Any, memo: dict[int, Any]) -> Callable[[], None]:
    before = node.copy()
    if isinstance(node, dict):
        lent: Any = {key: _copied(value, memo) for key, value in node.items()}
    else:
        lent = type(before)(_copied(item, memo) for item in before)
    _fill(node, lent)
    return partial(_fill, node, before)


def _fill(node: Any, contents: Any) -> None:
    if isinstance(node, list):
        node[:] = contents
    elif isinstance(node, deque):
        node.clear()
        node.extend(contents)
    else:
        node.clear()
        node.update(contents)
