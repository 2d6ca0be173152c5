"""What modules hold, by name, whatever their classes make of hashing and of torch's own methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


def named_modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module in a module, itself included as "", each once."""
    return _asked(root.named_modules, lambda: _modules(root))


def named_parameters(root: nn.Module, *, every_name: bool = False) -> list[tuple[str, Tensor]]:
    """Every parameter of a module, each once, or under all of its names."""
    if every_name:
        return _asked(lambda: root.named_parameters(remove_duplicate=False), lambda: _tensors(root, "_parameters"))
    return _asked(root.named_parameters, lambda: _once(_tensors(root, "_parameters")))


def named_buffers(root: nn.Module) -> list[tuple[str, Tensor]]:
    """Every buffer of a module, each once."""
    return _asked(root.named_buffers, lambda: _once(_tensors(root, "_buffers")))


def parameters(root: nn.Module) -> list[Tensor]:
    """Every parameter of a module, each once."""
    return [parameter for _, parameter in named_parameters(root)]


def children(module: nn.Module) -> list[nn.Module]:
    """The modules directly inside a module."""
    return [child for child in module._modules.values() if child is not None]


def _asked(method: Callable[[], Any], ourselves: Callable[[], Iterator[T]]) -> list[T]:
    try:
        return list(method())
    except Exception:  # noqa: BLE001 - the class has a method of its own that does not take this, or cannot be hashed
        return list(ourselves())


def _modules(root: nn.Module, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, nn.Module]]:
    seen = set() if seen is None else seen
    if id(root) in seen:
        return
    seen.add(id(root))
    yield path, root
    for name, child in root._modules.items():
        if child is not None:
            yield from _modules(child, f"{path}.{name}" if path else name, seen)


def _tensors(root: nn.Module, kind: str) -> Iterator[tuple[str, Any]]:
    for path, module in _modules(root):
        for name, tensor in getattr(module, kind).items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _once(named: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
