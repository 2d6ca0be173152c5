"""What a run's values would be in a precision of another range: headroom is a number of bits, ranges are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytest_nanstab.watching.headroom import LARGEST

_TOPS = {str(dtype).removeprefix("torch."): top for dtype, top in LARGEST.items()}
_TARGETS = ("float16", "bfloat16")  # the half precisions that are trained in
_QUANTITIES = ("loss", "activation", "gradient", "parameter")
_SHOWN = 3


def projections(headroom: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each format of the run, least bits and where; then one for each half precision it was not in.

    The latter say how many bits it would leave, or what overflows in it.

    Args:
        headroom: `Run.headroom`: bits to the largest number of the tensor's own dtype, by quantity, name and dtype.
    """
    values = _values(headroom)
    used = {dtype: [value for value in values if value[2] == dtype] for _, _, dtype in values}
    own = [f"in its own {dtype}: {_line(_TOPS[dtype], used[dtype])}" for dtype in _TOPS if dtype in used]
    return own + [f"in {name}: {_line(_TOPS[name], values)}" for name in _TARGETS if values and name not in used]


def _values(headroom: Mapping[str, Mapping[str, float]]) -> list[tuple[float, str, str]]:
    """(log2 of the largest value, name, dtype) of everything measured; a loss scale would change gradients alone."""
    found = []
    for quantity in _QUANTITIES:
        for name, bits in (headroom.get(quantity) or {}).items():
            tensor, _, dtype = name.rpartition(" ")
            top = _TOPS.get(dtype)
            if top is not None and math.isfinite(bits):
                what = quantity if tensor == quantity else f"{quantity} {tensor}".rstrip()
                found.append((math.log2(top) - bits, what, dtype))
    return sorted(found, reverse=True)


def _line(top: float, values: list[tuple[float, str, str]]) -> str:
    beyond = [(size, name) for size, name, _ in values if size > math.log2(top)]
    size, name, _ = values[0]
    if not beyond:
        return f"{math.log2(top) - size:.1f} bits, least in {name}"
    more = f" and in {len(beyond) - 1} more" if len(beyond) > 1 else ""
    return f"overflows in {name} ({_number(size)} > {top:.5g}){more}"


def _number(size: float) -> str:
    return f"{2.0**size:.2g}" if size < 1023 else f"2**{size:.0f}"


def underflows(underflow: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each half precision: how much of the gradients it would lose, and which loss scales keep them.

    Args:
        underflow: `Run.underflow`.
    """
    return [_small_end(name, found) for name, found in underflow.items()]


def _small_end(name: str, found: Mapping[str, Any]) -> str:
    scales = found["loss_scale"]
    if not found["below_normal"]:
        return f"gradients in {name}: none under the smallest normal, no loss scale needed"
    small, gone = _percent(found["below_normal"]), _percent(found["below_subnormal"])
    lost = f"{small} of the values under the smallest normal, {gone} lost"
    worst = f", most in {found['worst']} ({_percent(found['worst_share'])})" if found["worst_share"] else ""
    if scales is None:
        return f"gradients in {name}: {lost}{worst}; no loss scale keeps 99 % of them without overflow"
    low, high = (round(math.log2(scale)) for scale in scales)
    return f"gradients in {name}: {lost}{worst}; loss scales from 2**{low} to 2**{high} keep 99 %"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def left_out(counts: Mapping[str, int]) -> list[str]:
    """A line on the values that are masks, not measurements.

    Args:
        counts: `Run.left_out`.
    """
    if not counts:
        return []
    most = sorted(counts.items(), key=lambda entry: -entry[1])[:_SHOWN]
    more = f" and {len(counts) - len(most)} more" if len(counts) > len(most) else ""
    return [f"masks left out: {', '.join(f'{count} values of {name}' for name, count in most)}{more}"]


def parity_notes(parity: Mapping[str, Any] | str) -> list[str]:
    """A line on how far the precision's values are from those of "64-true".

    Args:
        parity: what `suite.parity.parity` returned.
    """
    if isinstance(parity, str):
        return [f"not compared with 64-true: {parity}"]
    if not parity["modules"]:
        return []
    eps, first = parity["eps"], parity["first"]
    worst = max(parity["modules"], key=lambda row: row["error"])
    text = f"{parity['precision']} against 64-true: {_eps_of(worst['error'], eps)} at most, in {worst['module']}"
    loss, allowed = parity["loss"], parity["loss_explained"]
    if loss is not None and not loss <= allowed:
        text += f", and {_eps_of(loss, eps)} in the loss"
    if first is None:
        of_it = "all of it" if loss is None or loss <= allowed else "that of the modules, not that of the loss"
        return [f"{text}; rounding explains {of_it}"]
    row = next(row for row in parity["modules"] if row["module"] == first)
    where = f"before {first}, in its input" if parity["before"] else f"in {first}"
    came = "" if row["input_error"] is None else f", {_eps_of(row['input_error'], eps)} in its input"
    return [f"{text}; beyond what rounding explains first {where} ({_eps_of(row['error'], eps)}{came})"]


def _eps_of(error: float, eps: float) -> str:
    return f"{error:.2g} = {error / eps:.2g} eps"
