"""Telling when torch gets imported, for tests that import it in their own body. Standard library only."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def torch_is_here() -> bool:
    """Whether the real torch has been imported whole: not None, not a stand-in of a test, not half way."""
    return all(sys.modules.get(name) is not None for name in ("torch", "torch.nn", "torch.optim", "torch.amp"))


class Arrival(MetaPathFinder):
    """A finder that finds nothing: it calls `arrived` once torch has been imported whole.

    Asking for torch's spec (`importlib.util.find_spec("torch")`, as libraries do to see whether it is installed) is no
    import, so it stays until `remove`.
    """

    def __init__(self, arrived: Callable[[], None]) -> None:
        self._arrived = arrived
        self._asking = False

    def install(self) -> None:
        """Begin to listen."""
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Stop listening; loaders handed out already stay silent from now on."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol of the import system
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Let the other finders find torch, and listen to its loader."""
        if fullname != "torch" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Listening(spec.loader, self)
        return spec

    def loaded(self) -> None:
        """torch has been executed."""
        if self in sys.meta_path:
            self.remove()
            self._arrived()


class _Listening(Loader):
    """A loader that stands in for torch's own until the import is done."""

    def __init__(self, loader: Any, arrival: Arrival) -> None:
        self._loader = loader
        self._arrival = arrival

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying asks for these before there is a loader to ask
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # torch must see its own loader: it reads files beside it through it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._arrival.loaded()
