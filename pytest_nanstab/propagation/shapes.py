"""The numbers taken of one result: its size, dead units, saturation, and what a softmax makes of its logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.propagation.passes import Op
from pytest_nanstab.watching import measure

# Rectifiers: a unit that is at its lower or upper end for every sample passes no gradient on.
RECTIFIERS = frozenset(
    {"relu", "threshold", "clamp_min", "maximum", "relu6", "leaky_relu", "gelu", "silu", "hardswish", "softshrink"}
    | {"elu", "mish"}
)
# Bounded activations, with the value beyond which their slope is under a hundredth of its largest:
# tanh' = 1 - y^2, sigmoid' = y (1 - y).
_TANH_FLAT = math.sqrt(1 - 0.01)
_SIGMOID_FLAT = (1 - math.sqrt(1 - 0.01)) / 2
_MOST_ROWS = 4096
_NOTHING = 1e-3  # what is left of a GELU or SiLU far below 0


def norm(tensor: Tensor) -> float:
    """L2 norm in double precision; 0 for what has no numbers."""
    values = measure.plain(tensor)
    if values is None:
        return 0.0
    found = float(torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float32)))
    return found if math.isfinite(found) else (measure.exact_norm([tensor]) or 0.0)


def rms(tensor: Tensor) -> tuple[float | None, bool]:
    """Root mean square of the values that are not -inf, and whether the rest is finite."""
    values = measure.plain(tensor)
    if values is None:
        return None, True
    seen = measure.extent(values)
    if seen is not None and seen.low == -math.inf and not seen.has_nan:
        values = values[values != -math.inf]
        seen = measure.extent(values)
    if seen is None:
        return None, True
    if not math.isfinite(seen.largest):
        return None, False
    return norm(values) / math.sqrt(values.numel()), True


def numbers(args: Any) -> tuple[float, ...]:
    """The plain numbers among arguments."""
    return tuple(float(value) for value in args if isinstance(value, (int, float)) and not isinstance(value, bool))


def describe(op: Op, output: Tensor, inputs: list[Tensor]) -> None:
    """Fill in what is known of an operation from its result."""
    op.size, op.finite = rms(output)
    seen = measure.extent(output)
    op.top = None if seen is None or not seen.finite else seen.largest
    op.norm = None if op.size is None else op.size * math.sqrt(output.numel())
    if op.size is None:
        return
    if op.name in RECTIFIERS or (op.name in ("hardtanh", "clamp") and op.numbers[:1] == (0.0,)):
        op.dead = _dead(output, (op.numbers or (0.0,))[-1] if op.name in ("hardtanh", "relu6") else math.inf)
    elif op.name in ("tanh", "hardtanh"):
        op.saturated = _share(output.abs() >= (_TANH_FLAT if op.name == "tanh" else 1.0) * (op.numbers or (0, 1.0))[-1])
    elif op.name in ("sigmoid", "hardsigmoid"):
        op.saturated = _share((output <= _SIGMOID_FLAT) | (output >= 1 - _SIGMOID_FLAT))
    elif op.name == "softmax":
        _describe_softmax(op, inputs[0], output)
    elif op.name == "scaled_dot_product_attention" and len(inputs) > 2:
        describe_attention(op, inputs)


def _share(mask: Tensor) -> float:
    return float(mask.count_nonzero()) / max(mask.numel(), 1)


def _dead(output: Tensor, upper: float) -> tuple[bool, ...] | None:
    """Which units are zero everywhere, or at their upper end: channels of maps, features of everything else."""
    if output.dim() < 2 or output.numel() < 2 * max(output.shape[1 if output.dim() >= 4 else -1], 1):
        return None
    unit = 1 if output.dim() >= 4 else output.dim() - 1
    values = output.detach().movedim(unit, 0).flatten(1).float()
    low, high = values.amin(dim=1), values.amax(dim=1)
    return tuple(((low == high) & ((low.abs() < _NOTHING) | (low == upper))).tolist())


def _describe_softmax(op: Op, logits: Tensor, output: Tensor) -> None:
    dim = int(op.numbers[0]) if op.numbers else -1
    if output.dim() == 0 or output.shape[dim] < 2 or logits.shape != output.shape:
        return
    rows = _rows(output, dim)
    entropy = torch.special.entr(rows).sum(-1)
    possible = (rows > 0).sum(-1).clamp_min(2).double().log()
    op.entropy = float((entropy / possible).mean())
    op.spread = _spread(_rows(logits, dim), torch.finfo(logits.dtype).min if logits.is_floating_point() else 0.0)


def _rows(values: Tensor, dim: int) -> Tensor:
    """At most some thousand rows along a dimension, in double precision."""
    moved = values.detach().movedim(dim, -1)
    return moved.reshape(-1, moved.shape[-1])[:_MOST_ROWS].double()


def _spread(logits: Tensor, lowest: float) -> float:
    """The standard deviation of the logits within a row, averaged; mask constants do not count."""
    known = torch.isfinite(logits) & (logits > lowest / 4) & (logits > -1e4)
    count = known.sum(-1).clamp_min(1)
    mean = torch.where(known, logits, 0.0).sum(-1) / count
    square = torch.where(known, logits - mean[:, None], 0.0).square().sum(-1) / count
    return float(square.sqrt().mean())


def describe_attention(op: Op, inputs: list[Tensor]) -> None:
    """What a fused attention makes of its logits, computed again for a part of its rows."""
    query, key = inputs[0].detach(), inputs[1].detach()
    if query.dim() < 3 or key.shape[:-2] != query.shape[:-2] or query.shape[-1] != key.shape[-1]:
        return
    scale = next((number for number in op.numbers if 0 < number < 1), query.shape[-1] ** -0.5)
    rows = max(_MOST_ROWS // max(key.shape[-2], 1), 1)
    query = query.reshape(-1, *query.shape[-2:])[:rows].double()
    key = key.reshape(-1, *key.shape[-2:])[:rows].double()
    logits = (query @ key.transpose(-1, -2) * scale).reshape(-1, key.shape[-2])[:_MOST_ROWS]
    if logits.shape[-1] < 2:
        return
    entropy = torch.special.entr(torch.softmax(logits, -1)).sum(-1)
    op.entropy = float(entropy.mean()) / math.log(logits.shape[-1])
    op.spread = _spread(logits, 0.0)
