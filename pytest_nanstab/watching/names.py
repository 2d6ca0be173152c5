"""Names of parameters, buffers and modules, as the user's own module tree has them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pytest_nanstab.watching import measure, torch_private


@dataclass
class _Found:
    """What a buffer held when its outermost module was first called."""

    nan: bool
    inf: bool


class Names:
    """The outermost modules seen, by weak reference, in order of their first call."""

    def __init__(self) -> None:
        self._roots: list[weakref.ref[nn.Module]] = []
        self._buffers: weakref.WeakKeyDictionary[nn.Module, dict[str, _Found]] = weakref.WeakKeyDictionary()

    @torch_private.past_modes
    def add(self, module: nn.Module) -> bool:
        """Remember an outermost module before its first call; False when it is known already."""
        if any(reference() is module for reference in self._roots):
            return False
        self._roots.append(weakref.ref(module))
        self._buffers[module] = {name: _as_found(buffer) for name, buffer in _buffers(module)}
        return True

    def accept_buffers(self) -> None:
        """Take the buffers as they are now for how they are meant."""
        for root in self.roots():
            self._buffers[root] = {name: _as_found(buffer) for name, buffer in _buffers(root)}

    def roots(self) -> Iterator[nn.Module]:
        """The outermost modules that are still alive."""
        for reference in self._roots:
            module = reference()
            if module is not None:
                yield module

    def parameter(self, parameter: Tensor) -> str | None:
        """The dotted name of a parameter in the first outermost module that owns it."""
        for root in self.roots():
            for name, candidate in root.named_parameters(remove_duplicate=False):
                if candidate is parameter:
                    return name
        return None

    def path(self, owner: Any) -> str:
        """The dotted name of a module or parameter; of an outermost or unknown one the name of its class."""
        for root in self.roots():
            members = root.named_parameters() if isinstance(owner, Tensor) else root.named_modules()
            for name, candidate in members:
                if candidate is owner:
                    return name or type(owner).__name__
        return type(owner).__name__

    def label(self, optimizer: Any, parameter: Tensor) -> str:
        """The parameter's dotted name, or its place in the optimizer's groups."""
        name = self.parameter(parameter)
        if name is not None:
            return name
        for group, content in enumerate(optimizer.param_groups):
            for index, candidate in enumerate(content["params"]):
                if candidate is parameter:
                    return f"param_groups[{group}]['params'][{index}]"
        return "a parameter"

    def bad_buffer(self) -> tuple[str, Tensor] | None:
        """The first buffer that was broken while watched: NaN, or an infinity in a running statistic.

        Only NaN and infinities that were not there at first count: sentinels are meant. Whether a buffer was written to
        cannot be asked: batch norm leaves the version of its statistics alone.
        """
        for root in self.roots():
            found = self._buffers.get(root, {})
            for name, buffer in _buffers(root):
                if _broken(name, buffer, found.get(name, _Found(nan=False, inf=False))):
                    return name, buffer
        return None


def _as_found(buffer: Tensor) -> _Found:
    seen = measure.extent(buffer)
    nan = seen is not None and seen.has_nan
    return _Found(nan=nan, inf=seen is not None and not nan and not seen.finite)


def _broken(name: str, buffer: Tensor, before: _Found) -> bool:
    seen = measure.extent(buffer)
    if seen is None or seen.finite:
        return False
    if seen.has_nan:
        return not before.nan
    return name.rpartition(".")[2].startswith("running_") and not before.inf


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            yield name, buffer


def owner(name: str) -> str:
    """The module path of a dotted parameter or buffer name; "" is the outermost module itself."""
    return name.rpartition(".")[0]
