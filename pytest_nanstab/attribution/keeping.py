"""What a repetition may change, and how it is put back: random states, attributes, containers, tensors."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
import sys
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_nanstab.watching import measure

_Restore = Callable[[], object]
_CONTAINERS = (list, dict, set, deque, Counter, OrderedDict, defaultdict)
# Copies of the tensors at hand: more than this would be felt.
_MOST_ELEMENTS = 50_000_000


@contextmanager
def kept(modules: Iterable[nn.Module], owners: Iterable[Any], values: Iterable[Any]) -> Iterator[Callable[[], bool]]:
    """Put back, at the end of the block, all that its code could change; the value tells whether it drew at random.

    Args:
        modules: those that may be called.
        owners: other objects whose own attributes may be changed.
        values: what the code is given: tensors and private random generators among it.
    """
    given = list(values)
    restores = [_attributes_of(owner) for owner in (*modules, *owners)]
    restores += [_tensors_of(given), *_generators_of([*given, *_inside(owners), *_inside(modules)])]
    before = _drawn()
    restore_random = _random_states()
    try:
        with _quiet():
            yield lambda: _drawn() != before
    finally:
        restore_random()
        for restore in restores:
            restore()


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is printed, logged or warned about a second time."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _inside(owners: Iterable[Any]) -> Iterator[Any]:
    for owner in owners:
        yield from getattr(owner, "__dict__", {}).values()


# -- attributes and containers -----------------------------------------------------------------------------------------


def _attributes_of(owner: Any) -> _Restore:
    attributes = dict(getattr(owner, "__dict__", {}))
    contents = [_contents_of(value) for value in attributes.values()]
    buffers = list(owner._buffers.values()) if isinstance(owner, nn.Module) else []
    tensors = [t for t in (*attributes.values(), *buffers) if isinstance(t, Tensor) and not t.is_meta]
    values = [(tensor, tensor.detach().clone()) for tensor in tensors if not _is_lazy(tensor)]

    def restore() -> None:
        for put_back in contents:
            put_back()
        owner.__dict__.clear()
        owner.__dict__.update(attributes)
        for tensor, value in values:
            _write_back(tensor, value)

    return restore if attributes else lambda: None


def _is_lazy(tensor: Tensor) -> bool:
    return isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer))


def _contents_of(value: Any, depth: int = 0) -> _Restore:
    """The contents of a container and of those inside it; nothing for any other value."""
    if type(value) not in _CONTAINERS or depth > 3:
        return _array_of(value)
    content = copy.copy(value)
    inner = content.values() if isinstance(content, dict) else content
    below = [_contents_of(item, depth + 1) for item in list(inner)[:256]]

    def restore() -> None:
        for put_back in below:
            put_back()
        value.clear()
        value.extend(content) if isinstance(value, (list, deque)) else value.update(content)

    return restore


def _array_of(value: Any) -> _Restore:
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray) or value.dtype == object:
        return lambda: None
    content = value.copy()

    def restore() -> None:
        if value.flags.writeable:
            value[...] = content

    return restore


# -- tensors -----------------------------------------------------------------------------------------------------------


def _tensors_of(values: list[Any]) -> _Restore:
    """The tensors among values, put back if anything wrote to them."""
    found = {id(t): t for value in values if not isinstance(value, nn.Module) for _, t in measure.all_tensors_in(value)}
    plain = [t for t in found.values() if t.grad_fn is None and not t.is_meta and not t.is_inference()]
    if sum(t.numel() for t in plain) > _MOST_ELEMENTS:
        return lambda: None
    copies = [(t, t._version, t.detach().clone()) for t in plain]

    def restore() -> None:
        for tensor, version, value in copies:
            if tensor._version != version:
                _write_back(tensor, value)

    return restore


def _write_back(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        if tensor.shape == value.shape and not torch.equal(tensor, value):
            tensor.data.copy_(value)


# -- random numbers ----------------------------------------------------------------------------------------------------


def _random_states() -> _Restore:
    cpu, python = torch.get_rng_state(), random.getstate()
    numpy: Any = sys.modules.get("numpy")
    legacy = None if numpy is None else numpy.random.get_state()

    def restore() -> None:
        torch.set_rng_state(cpu)
        random.setstate(python)
        if legacy is not None:
            numpy.random.set_state(legacy)

    return restore


def _drawn() -> tuple[Any, ...]:
    """Something that changes when a random number is drawn."""
    numpy: Any = sys.modules.get("numpy")
    legacy = () if numpy is None else numpy.random.get_state()
    return bytes(torch.get_rng_state().numpy()), random.getstate(), str(legacy[1:3]) if legacy else ""


def _generators_of(values: Iterable[Any]) -> Iterator[_Restore]:
    """Private generators of torch, numpy and Python among values."""
    numpy: Any = sys.modules.get("numpy")
    for value in values:
        if isinstance(value, torch.Generator):
            yield partial(value.set_state, value.get_state())
        elif isinstance(value, random.Random):
            yield partial(value.setstate, value.getstate())
        elif numpy is not None and isinstance(value, numpy.random.Generator):
            yield partial(setattr, value.bit_generator, "state", value.bit_generator.state)
