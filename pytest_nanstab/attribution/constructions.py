"""Where each optimizer was constructed: the line of the user's that findings about its hyperparameters name."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer

from pytest_nanstab.attribution.source import user_spot

_KNOWN: WeakKeyDictionary[Optimizer, tuple[str, int]] = WeakKeyDictionary()


def record(optimizer: Optimizer) -> None:
    """An optimizer has just been constructed."""
    spot = user_spot()
    if spot is not None:
        _KNOWN[optimizer] = spot


def line_of(optimizer: Any) -> tuple[str, int] | None:
    """The user's line that constructed an optimizer; None where nobody was looking."""
    return _KNOWN.get(optimizer) if isinstance(optimizer, Optimizer) else None


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
