"""What a run's values would be in a precision of another range: headroom is a number of bits, ranges are known."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pytest_nanstab.watching.headroom import LARGEST

_TOPS = {str(dtype).removeprefix("torch."): top for dtype, top in LARGEST.items()}
_TARGETS = {name: _TOPS[name] for name in ("float16", "bfloat16")}  # the half precisions that are trained in
_QUANTITIES = ("activation", "gradient", "parameter")


def projections(headroom: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each half precision the run was not in: how many bits it leaves, or what overflows in it.

    Args:
        headroom: `Run.headroom`: bits to the largest number of the tensor's own dtype, by quantity, name and dtype.
    """
    values = list(_values(headroom))
    used = {dtype for _, _, dtype in values}
    return [_line(target, top, values) for target, top in _TARGETS.items() if values and target not in used]


def _values(headroom: Mapping[str, Mapping[str, float]]) -> list[tuple[float, str, str]]:
    """(log2 of the largest value, name, dtype) of everything measured; a loss scale would change gradients alone."""
    found = []
    for quantity in _QUANTITIES:
        for name, bits in (headroom.get(quantity) or {}).items():
            tensor, _, dtype = name.rpartition(" ")
            top = _TOPS.get(dtype)
            if top is not None and math.isfinite(bits):
                found.append((math.log2(top) - bits, f"{quantity} {tensor}".rstrip(), dtype))
    return sorted(found, reverse=True)


def _line(target: str, top: float, values: list[tuple[float, str, str]]) -> str:
    beyond = [(size, name) for size, name, _ in values if size > math.log2(top)]
    size, name, _ = values[0]
    if not beyond:
        return f"in {target}: {math.log2(top) - size:.1f} bits, least in {name}"
    more = f" and in {len(beyond) - 1} more" if len(beyond) > 1 else ""
    return f"in {target}: overflows in {name} ({_number(size)} > {top:.5g}){more}"


def _number(size: float) -> str:
    return f"{2.0**size:.2g}" if size < 1023 else f"2**{size:.0f}"
