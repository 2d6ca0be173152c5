"""What an observed pass says of a model at large: a line each on depth, softmax and the residual stream."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_nanstab.propagation.depth import FEWEST, Layer, layers_of
from pytest_nanstab.propagation.passes import Pass, ratio


def summary(seen: Pass) -> list[str]:
    """What depth, attention and residual streams make of the first pass, in a line each."""
    layers = layers_of(seen)
    unseen = None if seen.failed is None else f"gradients of the first pass not judged: {seen.failed}"
    told = [_over_depth(layers), _attention(seen), _stream(seen), unseen]
    return [line for line in told if line]


def _over_depth(layers: Sequence[Layer]) -> str | None:
    if len(layers) < FEWEST:
        return None
    first, last = layers[0].op, layers[-1].op
    parts = []
    for what, total in (
        ("signal", ratio(last.size_in, first.size)),
        ("gradient", ratio(first.sensitivity, last.sensitivity)),
    ):
        if total:
            parts.append(f"{what} x{total ** (1 / (len(layers) - 1)):.3g} per layer, x{total:.2g} after {len(layers)}")
    return "; ".join(parts) or None


def _attention(seen: Pass) -> str | None:
    known = [(op.entropy, op.spread) for op in seen.ops if op.entropy is not None and op.spread is not None]
    if not known:
        return None
    entropy, spread = min(value for value, _ in known), max(value for _, value in known)
    return f"softmax: at least {entropy:.2g} of the possible entropy, logits at most {spread:.2g} apart"


def _stream(seen: Pass) -> str | None:
    """Additions of two activations of one shape, of which one is the sum before: a residual stream."""
    sums = [
        op for op in seen.ops if op.name == "add" and op.size and not op.weights and (len(op.sources) > 1 or op.raw)
    ]
    if len(sums) < FEWEST or sums[0].shape != sums[-1].shape or not sums[0].size or not sums[-1].size:
        return None
    return f"residual stream x{sums[-1].size / sums[0].size:.2g} over {len(sums)} additions"
