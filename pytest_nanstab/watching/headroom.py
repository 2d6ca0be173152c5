"""Headroom: how many bits a tensor's largest value is below the largest finite number of its dtype."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

from pytest_nanstab.watching import measure, torch_private
from pytest_nanstab.watching.names import Names

LARGEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


def bits(largest: float, dtype: torch.dtype) -> float | None:
    """log2(finfo(dtype).max / largest): 0 is the edge of overflow; None for a tensor of zeros.

    Values that are infinite or equal to the dtype's largest number are mask constants, not measurements: None too.
    """
    top = LARGEST.get(dtype)
    if top is None or not 0 < largest < top:
        return None
    return math.log2(top) - math.log2(largest)  # the quotient of float64 numbers may overflow


@dataclass(frozen=True)
class Least:
    """The tensor nearest to overflow."""

    bits: float
    quantity: str
    name: str
    largest: float
    dtype: torch.dtype


class Headroom:
    """Running least headroom of activations (leaf module outputs), gradients and parameters, by name and dtype."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._handle: RemovableHandle | None = None
        self._largest: dict[tuple[str, str, torch.dtype], float] = {}
        self._paths: dict[int, tuple[weakref.ref[Any], str]] = {}

    def install(self) -> None:
        """Begin to look at the outputs of leaf modules."""
        self._handle = register_module_forward_hook(self._leaf)

    def remove(self) -> None:
        """Stop looking at outputs."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _leaf(self, module: nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or module._modules or torch_private.tracing_state() is not None:
            return
        self._activations(module, output)

    @torch_private.past_modes
    def _activations(self, module: nn.Module, output: Any) -> None:
        for _, tensor in measure.tensors_in(output):
            self._see("activation", module, tensor)

    def step(self, parameters: list[Tensor]) -> None:
        """Measure an optimizer's gradients and parameters."""
        for parameter in parameters:
            self._see("parameter", parameter, parameter)
            if parameter.grad is not None:
                self._see("gradient", parameter, parameter.grad)

    def _see(self, quantity: str, owner: Any, tensor: Tensor) -> None:
        dtype = tensor.dtype
        top = LARGEST.get(dtype)
        seen = measure.extent(tensor) if top is not None else None
        if seen is None or not seen.finite or top is None or not seen.largest < top:
            return
        slot = (quantity, self._path(owner), dtype)
        if seen.largest > self._largest.get(slot, 0.0):
            self._largest[slot] = seen.largest

    def _path(self, owner: Any) -> str:
        reference, path = self._paths.get(id(owner), (None, ""))
        if reference is None or reference() is not owner:
            path = self._names.path(owner)
            self._paths[id(owner)] = (weakref.ref(owner), path)
        return path

    def least(self) -> Least | None:
        """The tensor nearest to overflow so far."""
        best: Least | None = None
        for (quantity, name, dtype), largest in self._largest.items():
            distance = bits(largest, dtype)
            if distance is not None and (best is None or distance < best.bits):
                best = Least(distance, quantity, name, largest, dtype)
        return best

    def table(self) -> dict[str, dict[str, float]]:
        """Bits by quantity and then by "name dtype"."""
        result: dict[str, dict[str, float]] = {}
        for (quantity, name, dtype), largest in self._largest.items():
            distance = bits(largest, dtype)
            if distance is not None:
                result.setdefault(quantity, {})[f"{name} {str(dtype).removeprefix('torch.')}"] = distance
        return result
