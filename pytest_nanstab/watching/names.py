"""Names of parameters, buffers and modules, as the user's own module tree has them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class Names:
    """The outermost modules seen, by weak reference, in order of their first call."""

    def __init__(self) -> None:
        self._roots: list[weakref.ref[nn.Module]] = []
        self._known: set[int] = set()
        self._versions: dict[int, tuple[int, int]] = {}  # id(root) + name -> (id(buffer), version)

    def add(self, module: nn.Module) -> bool:
        """Remember an outermost module before its first call; False when it is known already."""
        if id(module) in self._known:
            return False
        self._known.add(id(module))
        self._roots.append(weakref.ref(module))
        for name, buffer in _buffers(module):
            self._versions[hash((id(module), name))] = (id(buffer), buffer._version)
        return True

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

    def changed_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers that were replaced or written to since their module was first called."""
        for root in self.roots():
            for name, buffer in _buffers(root):
                before = self._versions.get(hash((id(root), name)))
                if before != (id(buffer), buffer._version):
                    yield name, buffer


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and not buffer.is_inference():
            yield name, buffer


def owner(name: str) -> str:
    """The module path of a dotted parameter or buffer name; "" is the outermost module itself."""
    return name.rpartition(".")[0]
