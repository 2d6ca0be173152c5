"""What each dtype can hold: families, finite ranges, and bounds rounded inward so that nothing leaves them."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

Family = Literal["float", "int", "bool", "complex"]
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("float16", "float32", "float64", "bfloat16"), "float"),
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint8"), "int"),
    "bool": "bool",
    **dict.fromkeys(("complex64", "complex128"), "complex"),
}
_PARTS = {"complex64": "float32", "complex128": "float64"}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def part_dtype(name: str) -> str:
    """The dtype of one real number: a complex number is a pair of them."""
    return _PARTS.get(name, name)


def work_dtype(name: str) -> type[np.float32] | type[np.float64]:
    """The numpy dtype in which floats of dtype `name` are computed: it holds all of them exactly."""
    return np.float64 if part_dtype(name) == "float64" else np.float32


def dtype_range(name: str) -> tuple[float, float] | tuple[int, int]:
    """The smallest and largest finite value of a dtype; ints for integers and bool."""
    if FAMILIES[name] == "bool":
        return 0, 1
    if FAMILIES[name] == "int":
        info = torch.iinfo(torch_dtype(name))
        return int(info.min), int(info.max)
    top = float(torch.finfo(torch_dtype(part_dtype(name))).max)
    return -top, top


def smallest_normal(name: str) -> float:
    """The smallest positive normal number of a float or complex dtype."""
    return float(torch.finfo(torch_dtype(part_dtype(name))).tiny)


@functools.lru_cache(maxsize=1024)
def float_bounds(name: str, low: float | None, high: float | None, *, subnormal: bool = True) -> tuple[float, float]:
    """The smallest and largest number of a float dtype inside [low, high]; low > high when there is none."""
    least, most = dtype_range(name)
    lower = float(least) if low is None else _rounded(name, low, up=True)
    upper = float(most) if high is None else _rounded(name, high, up=False)
    if subnormal:
        return lower, upper
    tiny = smallest_normal(name)
    if 0 < abs(lower) < tiny:
        lower = tiny if lower > 0 else 0.0
    if 0 < abs(upper) < tiny:
        upper = 0.0 if upper > 0 else -tiny
    return lower, upper


def _rounded(name: str, value: float, *, up: bool) -> float:
    """The nearest number of the dtype that is not on the wrong side of `value`."""
    nearest = torch.tensor(float(value), dtype=torch.float64).to(torch_dtype(part_dtype(name)))
    found = float(nearest)
    if (found < value) if up else (found > value):
        found = _neighbour(nearest, np.inf if up else -np.inf)
    return found


def _neighbour(value: torch.Tensor, towards: float) -> float:
    if value.dtype is torch.float16:  # torch.nextafter has no half on the CPU
        return float(np.nextafter(value.numpy(), np.float16(towards)))
    return float(torch.nextafter(value, torch.tensor(towards, dtype=value.dtype)))


def tensor_of(array: npt.NDArray[Any], name: str) -> torch.Tensor:
    """`array` as a tensor of dtype `name`; complex ones come as (..., 2) real and imaginary parts."""
    tensor = torch.from_numpy(array).to(torch_dtype(part_dtype(name)))
    return torch.complex(tensor[..., 0], tensor[..., 1]) if FAMILIES[name] == "complex" else tensor
