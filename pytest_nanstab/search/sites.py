"""The operations of one step that have an edge: where they stand, and how close their operands came."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_nanstab.attribution import operations
from pytest_nanstab.attribution.places import Spot, place_of_call
from pytest_nanstab.search.edges import Edge, operands_of
from pytest_nanstab.watching import torch_private


class Site(NamedTuple):
    """One operation of one line of the user's, and the edge that it has."""

    op: str
    spot: Spot
    edge: str


@dataclass
class Seen:
    """What one step showed of a site, over all its calls.

    Attributes:
        edge: its edge.
        distance: the smallest distance of an operand.
        bits: the same in bits.
        operands: what each call was given, for gradients.
    """

    edge: Edge
    distance: float = math.inf
    bits: float = math.inf
    operands: list[tuple[Tensor, ...]] = field(default_factory=list)

    def level(self, worst: int) -> Tensor | None:
        """What is to be made small: the sum over the `worst` elements nearest to the edge; None without a gradient."""
        levels = [self.edge.level(*given).reshape(-1) for given in self.operands if any(t.requires_grad for t in given)]
        levels = [level.float() for level in levels if level.requires_grad and level.numel()]
        if not levels:
            return None
        joined = torch.cat(levels)
        finite = torch.isfinite(joined.detach())
        joined = joined[finite]
        return joined.topk(min(worst, joined.numel()), largest=False).values.sum() if joined.numel() else None


class Lookup(NamedTuple):
    """A row of an embedding was looked up: by which integers, and what came out."""

    weight: Tensor
    indices: Tensor
    output: Tensor


class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation with an edge in the forward pass while it is on.

    Attributes:
        seen: by site.
        lookups: of embeddings, where `keeps` says that gradients will be asked for.
    """

    def __init__(self, *, keeps: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[Site, Seen] = {}
        self.lookups: list[Lookup] = []
        self._keeps = keeps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # The backward pass and the optimizer compute without gradients: their edges are those of the forward pass.
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        found = operands_of(func, args)
        if found:
            self._note(func, found)
        result = func(*args, **kwargs)
        if self._keeps and operations.describe(func).aten == "embedding":
            self.lookups.append(Lookup(args[0], args[1], result))
        return result

    def _note(self, func: Any, found: list[tuple[tuple[Tensor, ...], Edge]]) -> None:
        about = operations.describe(func)
        place, _ = place_of_call(2)
        if place.spot is None:
            return
        for given, edge in found:
            if any(tensor.is_meta or not tensor.numel() for tensor in given):
                continue
            seen = self.seen.setdefault(Site(about.name, place.spot, edge.words), Seen(edge))
            with torch_private.unseen():
                distance = float(edge.distance(*given).min())
            if distance < seen.distance:  # false for NaN: what is bad already is no near miss
                seen.distance, seen.bits = distance, edge.bits(distance, given[0].dtype)
            if self._keeps and not about.writes:  # what is overwritten has no gradient to ask for
                seen.operands.append(given)
