"""Moving a batch against a gradient without leaving its domain.

Sign steps scaled to the range of each field (Goodfellow et al., arXiv:1412.6572), projected; classes and tokens are
exchanged where a first-order estimate gains most (HotFlip, Ebrahimi et al., arXiv:1712.06751).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.batches import trees
from pytest_nanstab.batches.layout import Field, Plan
from pytest_nanstab.search.sites import Lookup

Gradients = Mapping[trees.Path, Tensor]


def differentiable(plan: Plan, batch: Any) -> tuple[Any, dict[trees.Path, Tensor]]:
    """The batch with its float fields as leaves that require a gradient, and these leaves."""
    known = {field.path for field in plan.fields}
    leaves: dict[trees.Path, Tensor] = {}

    def leaf_of(path: trees.Path, leaf: Any) -> Any:
        if path not in known or not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        leaves[path] = leaf.detach().clone().requires_grad_()
        return leaves[path]

    return trees.mapped(leaf_of, batch), leaves


def moved(plan: Plan, batch: Any, gradients: Gradients, share: float) -> Any:
    """The batch after a step against the gradients: `share` of each field's range, 1 for all of it; it stays legal."""
    return _changed(plan, batch, gradients, lambda field, leaf, gradient: _stepped(field, leaf, gradient, share))


def newton(plan: Plan, batch: Any, gradients: Gradients, length: float) -> Any:
    """The batch after a step of Newton's towards a distance of zero; `length` scales the gradients. It stays legal."""

    def rooted(field: Field, leaf: Tensor, gradient: Tensor) -> Tensor:
        if field.spec.kind != "values" or not leaf.is_floating_point():
            return leaf
        return _placed(field, leaf, gradient, leaf.double() - length * gradient.double())

    return _changed(plan, batch, gradients, rooted)


def _changed(plan: Plan, batch: Any, gradients: Gradients, change: Callable[[Field, Tensor, Tensor], Tensor]) -> Any:
    """The batch with every field that has a gradient changed, and padding as it was."""
    leaves = dict(trees.leaves(batch))
    fields = {field.path: field for field in plan.fields}

    def other(path: trees.Path, leaf: Any) -> Any:
        gradient, field = gradients.get(path), fields.get(path)
        if gradient is None or field is None:
            return leaf
        counted = None if field.lengths is None else leaves[plan.fields[field.lengths].path]
        return _padded(field, change(field, leaf, gradient), counted)

    return trees.mapped(other, batch)


def _stepped(field: Field, leaf: Tensor, gradient: Tensor, share: float) -> Tensor:
    kind = field.spec.kind
    if kind in ("one_hot", "probabilities"):
        best = torch.zeros_like(leaf).scatter_(-1, gradient.argmin(dim=-1, keepdim=True), 1.0)
        chosen = best if kind == "one_hot" else (1 - share) * leaf + share * best
        return torch.where((gradient == 0).all(dim=-1, keepdim=True), leaf, chosen)
    if kind != "values":
        return leaf
    if not leaf.is_floating_point():
        return _exchanged(field, leaf, gradient, share)
    low, high = field.spec.float_bounds()
    return _placed(field, leaf, gradient, leaf.double() - gradient.double().sign() * share * (high / 2 - low / 2) * 2)


def _placed(field: Field, leaf: Tensor, gradient: Tensor, wanted: Tensor) -> Tensor:
    """What is wanted, inside the field's bounds; where the gradient says nothing, and at legal NaN, what was there."""
    spec, (low, high) = field.spec, field.spec.float_bounds()
    inside = wanted.nan_to_num(0.0).clamp(low, high).to(leaf.dtype)
    result = torch.where(torch.isfinite(leaf) & (gradient != 0), inside, leaf)
    if spec.allow_subnormal:
        return result
    plain = 0.0 if low <= 0 <= high else low if low > 0 else high
    small = (result != 0) & (result.abs() < torch.finfo(leaf.dtype).tiny)
    return torch.where(small, torch.full_like(result, plain), result)


def _exchanged(field: Field, tokens: Tensor, gains: Tensor, share: float) -> Tensor:
    """The tokens with the share of them exchanged that gains most; `gains` is (tokens, values): what each would add."""
    low, high = field.spec.int_bounds()
    best, value = gains[:, low : high + 1].min(dim=-1)
    flat = tokens.reshape(-1).clone()
    count = max(1, round(share * flat.numel()))
    places = best.topk(min(count, flat.numel()), largest=False).indices
    places = places[best[places] < 0]
    if field.spec.ignore_index is not None:
        places = places[flat[places] != field.spec.ignore_index]
    flat[places] = (value[places] + low).to(flat.dtype)
    return flat.reshape(tokens.shape)


def _padded(field: Field, leaf: Tensor, lengths: Any) -> Tensor:
    """Padding stays what it was."""
    pad = field.spec.pad_value
    if lengths is None or pad is None:
        return leaf
    counts = torch.as_tensor(lengths).unsqueeze(-1)
    beyond = torch.arange(leaf.shape[field.time_axis]) >= counts
    result = leaf.clone()
    result[beyond] = pad
    return result


def token_gains(plan: Plan, batch: Any, lookups: Sequence[Lookup], gradients: Sequence[Tensor | None]) -> Gradients:
    """For each integer field that an embedding looks up: what every other value would add to the objective."""
    gains: dict[trees.Path, Tensor] = {}
    leaves = dict(trees.leaves(batch))
    for field in plan.fields:
        leaf = leaves.get(field.path)
        if field.spec.kind != "values" or field.spec.family != "int" or not isinstance(leaf, Tensor):
            continue
        for lookup, gradient in zip(lookups, gradients, strict=True):
            if gradient is not None and _is_the_same(leaf, lookup.indices) and field.spec.int_bounds()[0] >= 0:
                weight, flat = lookup.weight.detach().to(leaf.device), leaf.reshape(-1)
                scores = gradient.to(weight).reshape(flat.numel(), -1) @ weight.T
                gains[field.path] = scores - scores.gather(1, flat[:, None].long())
                break
    return gains


def _is_the_same(leaf: Tensor, indices: Tensor) -> bool:
    return leaf.numel() == indices.numel() > 0 and bool((leaf.reshape(-1) == indices.reshape(-1).to(leaf.device)).all())
