"""Where optimizers were constructed and weights were written: the user's lines that findings about them name."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_nanstab.attribution import operations
from pytest_nanstab.attribution.history import storage_key, storage_of
from pytest_nanstab.attribution.source import user_spot
from pytest_nanstab.watching import torch_private
from pytest_nanstab.watching.living import Living

Spot = tuple[str, int]
_KNOWN = Living[Spot]()
# By the identity of their memory; a weak reference keeps that identity from being used again.
_WRITTEN: dict[int, tuple[StorageWeakRef, Spot, Spot]] = {}  # by which line first, and by which last


def record(optimizer: Optimizer) -> None:
    """An optimizer has just been constructed."""
    spot = user_spot()
    if spot is not None:
        _KNOWN[optimizer] = spot


def line_of(optimizer: Any) -> tuple[str, int] | None:
    """The user's line that constructed an optimizer; None where nobody was looking."""
    return _KNOWN.get(optimizer) if isinstance(optimizer, Optimizer) else None


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the user's line that last wrote each floating tensor: an init call, torch.randn, or the construction of
    a layer, which fills its own weights."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        about = operations.describe(func)
        if isinstance(result, Tensor) and result.is_floating_point() and not about.view and not about.empty:
            spot, key = user_spot(), storage_key(result)
            if spot is not None and key is not None:
                known = _WRITTEN.get(key)
                if known is None or known[0].expired():  # type: ignore[no-untyped-call]
                    known = (StorageWeakRef(storage_of(result)), spot, spot)  # type: ignore[no-untyped-call]
                _WRITTEN[key] = (known[0], known[1], spot)
        return result


def written_at(tensor: Tensor) -> Spot | None:
    """The user's line that last wrote a tensor while somebody was looking: an init call."""
    known = _known(tensor)
    return None if known is None else known[2]


def built_at(tensor: Tensor) -> Spot | None:
    """The user's line that wrote it first: the construction of its layer."""
    known = _known(tensor)
    return None if known is None else known[1]


def _known(tensor: Tensor) -> tuple[StorageWeakRef, Spot, Spot] | None:
    key = storage_key(tensor)
    known = None if key is None else _WRITTEN.get(key)
    return None if known is None or known[0].expired() else known  # type: ignore[no-untyped-call]


def _sweep() -> None:
    for key in [key for key, (reference, *_) in _WRITTEN.items() if reference.expired()]:  # type: ignore[no-untyped-call]
        del _WRITTEN[key]


@contextmanager
def recording_writes() -> Iterator[None]:
    """Look at what writes to tensors in the block, and at the optimizers constructed in it: in a suite's factory."""
    _sweep()
    with recording(), _switched_on(_Writes()):  # type: ignore[no-untyped-call]
        yield


@contextmanager
def _switched_on(mode: TorchDispatchMode) -> Iterator[None]:
    """A dispatch mode that is taken off in whatever order the block leaves modes behind."""
    torch_private.add_mode(mode)
    try:
        yield
    finally:
        torch_private.drop_mode(mode)


@contextmanager
def recording() -> Iterator[None]:
    """Look at the optimizers constructed in the block, where no region does: in fixtures and factories."""
    original = Optimizer.__init__

    @functools.wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        record(self)

    Optimizer.__init__ = initialise  # type: ignore[method-assign]
    try:
        yield
    finally:
        if Optimizer.__init__ is initialise:
            Optimizer.__init__ = original  # type: ignore[method-assign]
