"""Headroom: how many bits a tensor's largest value is below the largest finite number of its dtype."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

from pytest_nanstab.watching import measure, torch_private
from pytest_nanstab.watching.names import Names

Slot = tuple[str, str, torch.dtype]  # quantity, name, dtype

LARGEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
# A mask of the largest number that scores are added to comes to just less: half of float16's last 64 numbers.
_USUAL = 1 - 2.0**-9
# Outputs of which it is known that they have been measured: modules hand on what those inside them return.
_REMEMBERED = 64


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
    """Running least headroom of module outputs, losses, gradients and parameters, by name and dtype.

    Args:
        names: what modules and parameters are called.
        wanted: whether the step under way is to be measured.

    Attributes:
        init_scale: the root mean square of each parameter before its first step.
    """

    def __init__(self, names: Names, wanted: Callable[[], bool] = lambda: True) -> None:
        self._names = names
        self._wanted = wanted
        self._handle: RemovableHandle | None = None
        self._largest: dict[Slot, float] = {}
        self._left_out: dict[Slot, int] = {}
        self._paths: dict[int, tuple[weakref.ref[Any], str]] = {}
        self._latest: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._arrived: set[int] = set()
        self.init_scale: dict[str, float] = {}

    def install(self) -> None:
        """Begin to look at the outputs of modules."""
        with torch_private.numbered_apart():
            self._handle = register_module_forward_hook(self._returned)

    def remove(self) -> None:
        """Stop looking at outputs."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._latest.clear()

    def _returned(self, module: nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self._wanted() or torch_private.tracing_state() is not None:
            return
        self._activations(module, output)

    @torch_private.past_modes
    def _activations(self, module: nn.Module, output: Any) -> None:
        for _, tensor in measure.tensors_in(output):
            with torch_private.past_subclass(tensor):
                if self._is_new(tensor):
                    self._see("activation", module, tensor)

    def _is_new(self, tensor: Tensor) -> bool:
        """Whether the tensor has not been measured as the output of a module inside this one."""
        if tensor.is_inference():  # has no version
            return True
        reference, version = self._latest.get(id(tensor), (None, 0))
        if reference is not None and reference() is tensor and version == tensor._version:
            return False
        if len(self._latest) >= _REMEMBERED:
            self._latest.clear()
        self._latest[id(tensor)] = weakref.ref(tensor), tensor._version
        return True

    @torch_private.past_modes
    def loss(self, tensor: Any, value: float) -> None:
        """A loss of this unscaled value is about to be differentiated."""
        with torch_private.past_subclass(tensor):
            dtype = tensor.dtype if isinstance(tensor, Tensor) else torch.get_default_dtype()
        if abs(value) < LARGEST.get(dtype, 0.0):  # NaN and infinity are no measurement
            self._keep(("loss", "loss", dtype), abs(value))

    def arrived(self, parameters: Iterable[Tensor], scale: float) -> None:
        """Measure the gradients that a backward has left, before anything clips them; `scale` multiplies them."""
        for parameter in parameters:
            if parameter.grad is not None:
                self._arrived.add(id(parameter))
                self._see("gradient", parameter, parameter.grad, scale)

    def has_arrived(self, parameter: Tensor) -> bool:
        """Whether its gradient has been measured since the last step."""
        return id(parameter) in self._arrived

    def step(self, parameters: Iterable[Tensor], scale: float) -> None:
        """Measure an optimizer's parameters, and the gradients that nobody has measured as they arrived."""
        self._latest.clear()
        for parameter in parameters:
            self._begin(parameter)
            self._see("parameter", parameter, parameter)
            if parameter.grad is not None and id(parameter) not in self._arrived:
                self._see("gradient", parameter, parameter.grad, scale)
            self._arrived.discard(id(parameter))

    def finish(self, parameters: Iterable[Tensor]) -> None:
        """Measure what the last step has left of parameters, and those that no optimizer has."""
        for parameter in (*parameters, *(p for root in self._names.roots() for p in root.parameters())):
            if not nn.parameter.is_lazy(parameter):
                self._see("parameter", parameter, parameter)

    def _begin(self, parameter: Tensor) -> None:
        """Keep the scale at which a parameter starts."""
        name = self._path(parameter)
        if name not in self.init_scale:
            norm = measure.exact_norm([parameter])
            self.init_scale[name] = 0.0 if norm is None else norm / math.sqrt(max(parameter.numel(), 1))

    def _see(self, quantity: str, owner: Any, tensor: Tensor, scale: float = 1.0) -> None:
        dtype = tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype
        top = LARGEST.get(dtype)
        seen = measure.extent(tensor) if top is not None else None
        if seen is None or top is None:
            return
        slot = (quantity, self._path(owner), dtype)
        if seen.largest < top * _USUAL:  # false for NaN
            self._keep(slot, seen.largest / scale)
        else:
            self._see_the_rest(slot, tensor, top, scale)

    def _see_the_rest(self, slot: Slot, tensor: Tensor, top: float, scale: float) -> None:
        """Measure what is no mask constant: neither infinite, nor the largest number, nor NaN."""
        with torch_private.unseen():
            values = measure.plain(tensor)
            if values is None:
                return
            rest = values.abs()
            rest = rest[rest < top * _USUAL]
            left_out = values.numel() - rest.numel()
            self._left_out[slot] = max(left_out, self._left_out.get(slot, 0))
            if rest.numel():
                self._keep(slot, rest.max().item() / scale)

    def _keep(self, slot: Slot, largest: float) -> None:
        if largest > self._largest.get(slot, 0.0):
            self._largest[slot] = largest

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
        for slot, largest in self._largest.items():
            distance = bits(largest, slot[2])
            if distance is not None:
                result.setdefault(slot[0], {})[_label(slot)] = distance
        return result

    def left_out(self) -> dict[str, int]:
        """How many values of "quantity name dtype" were no measurement, the most at one look."""
        return {f"{slot[0]} {_label(slot)}": count for slot, count in self._left_out.items() if count}

    def largest_gradient(self) -> float:
        """The largest magnitude of any gradient so far."""
        return max((largest for slot, largest in self._largest.items() if slot[0] == "gradient"), default=0.0)


def _label(slot: Slot) -> str:
    return f"{slot[1]} {str(slot[2]).removeprefix('torch.')}"
