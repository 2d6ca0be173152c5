"""`watch()`: the public way into a region, in or out of pytest."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

from pytest_nanstab.attribution.source import to_users_line
from pytest_nanstab.config import Limit, limits_from_call
from pytest_nanstab.errors import StabilityError
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region
from pytest_nanstab.watching.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from torch import nn
    from typing_extensions import Unpack

    from pytest_nanstab.config import Limits


ARGUMENTS = ("model", "name", "on_instability")


def watch(
    model: nn.Module | None = None,
    *,
    name: str = "watch",
    on_instability: Literal["raise", "record"] = "raise",
    **limits: Unpack[Limits],
) -> AbstractContextManager[Run]:
    """Watch any training or evaluation code in a `with` block: own loop, Lightning, Hugging Face, Accelerate.

    Args:
        model: judge only this module's outermost outputs; None judges those of all modules. Losses, gradients,
            parameters and optimizer state are judged whatever they belong to.
        name: shown in findings.
        on_instability: "raise" raises at the sink (for gradients before parameters change); "record" only fills
            `run.findings`.
        **limits: `max_loss`, `max_grad_norm`, `min_grad_norm`, `max_update_ratio`, `min_headroom_bits`: bounds of
            this block; those of marker and configuration do not count here.

    Returns:
        A context manager that yields the `Run`.

    Raises:
        TypeError, ValueError: at once, for a wrong argument.
        NonFiniteError, StabilityError: inside the block, or at its end, with `on_instability="raise"`.
    """
    return _watch(model, name, on_instability, limits_from_call(limits, besides=ARGUMENTS))


def start_watch(
    model: nn.Module | None, name: str, on_instability: str, limits: Mapping[str, Limit]
) -> AbstractContextManager[Run]:
    """`watch()` for callers that have merged their limits already."""
    return _watch(model, name, on_instability, limits)


def _watch(
    model: nn.Module | None, name: str, on_instability: str, limits: Mapping[str, Limit]
) -> AbstractContextManager[Run]:
    from torch import nn

    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {type(name).__name__}")
    if on_instability not in ("raise", "record"):
        raise ValueError(f"on_instability must be 'raise' or 'record', got {on_instability!r}")
    return _Watch(Options(name=name, model=model, raises=on_instability == "raise", limits=limits, shares=name))


class _Watch(AbstractContextManager[Run]):
    def __init__(self, options: Options) -> None:
        self._options = options
        self._region: Region | None = None

    def __enter__(self) -> Run:
        self._region = Region(self._options)
        return self._region.__enter__().run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        region, self._region = self._region, None
        assert region is not None, "left without being entered"
        region.__exit__(kind, error, traceback)
        # A script prints every frame, and those below the user's line are ours; pytest hides them by itself.
        if isinstance(error, StabilityError) and "PYTEST_CURRENT_TEST" not in os.environ:
            error.__traceback__ = to_users_line(traceback) or traceback
