"""Tensors of which each rank holds a part (DTensor, of FSDP2 and tensor parallelism): their parts, and norms of all.

A norm of a DTensor is a collective. Here every rank measures its share of the square, and the shares are added up when
the ranks meet at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from pytest_nanstab.watching import measure, torch_private
from pytest_nanstab.watching.norms import GradientNorm


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is distributed over ranks."""
    return type(tensor) not in (Tensor, Parameter) and hasattr(tensor, "placements")


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether one of them is."""
    return any(map(is_sharded, tensors))


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank, without its gradient; the tensor itself where it is not distributed."""
    detached: Any = tensor.detach()
    values: Tensor = detached.to_local() if is_sharded(tensor) else detached
    return values


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor, without its gradient: of a distributed one a collective, so every rank must ask for it."""
    detached: Any = tensor.detach()
    values: Tensor = detached.full_tensor() if is_sharded(tensor) else detached
    return values


def shards(tensor: Tensor) -> int:
    """Into how many different parts a tensor is cut; copies do not count."""
    if not is_sharded(tensor):
        return 1
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    return math.prod(mesh.size(dim) for dim, placed in enumerate(_placements(tensor)) if placed.is_shard())


def shard_label(tensor: Tensor) -> str:
    """Which part of a tensor lies on this rank: equal on the ranks that hold copies of it; "" for whole ones."""
    if not is_sharded(tensor):
        return ""
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    at = zip(mesh.get_coordinate() or [], _placements(tensor), strict=False)
    held = [str(place) for place, placed in at if placed.is_shard()]
    return (f" shard {'.'.join(held)}" if held else "") + ranks_label(mesh.mesh.flatten().tolist())


def ranks_label(ranks: Sequence[int]) -> str:
    """The ranks that hold something together, where it is not all of them."""
    return "" if len(ranks) == torch.distributed.get_world_size() else f" of ranks {', '.join(map(str, ranks))}"


def is_partial(tensor: Tensor) -> bool:
    """Whether the ranks hold summands: the values of one of them mean nothing by themselves."""
    return is_sharded(tensor) and any(placed.is_partial() for placed in _placements(tensor))


def _placements(tensor: Tensor) -> Sequence[Any]:
    return tensor.placements  # type: ignore[attr-defined, no-any-return]


class ShardedNorm(GradientNorm):
    """The gradients of an optimizer with distributed parameters: the root of this rank's share of the squares.

    The share of a tensor is the square of what lies here, times the number of its parts: averaged over all ranks that
    hold this model this is the square of the whole, however many copies there are.
    """

    def __init__(self, parameters: list[Tensor], groups: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(parameters, groups)
        self._parts = [shards(parameter) for parameter in parameters]

    def measure(self) -> float | None:
        """The root of the share; NaN or Inf only when an element is; None for summands."""
        total = 0.0
        with torch_private.unseen():
            for parameter, parts in zip(self.parameters, self._parts, strict=True):
                gradient = parameter.grad
                if gradient is None:
                    continue
                if is_partial(gradient):
                    return None
                size = measure.exact_norm([local(gradient)])
                if size is not None:
                    total = math.hypot(total, math.sqrt(parts) * size) if math.isfinite(size) else size
                if not math.isfinite(total):
                    return total
        return total

    def quick(self) -> float | None:
        """There is no quick way."""
        return None


def norm_over(parameters: list[Tensor], groups: Sequence[Mapping[str, Any]] = ()) -> GradientNorm:
    """What measures the gradients of these parameters."""
    kind = ShardedNorm if any_sharded(parameters) else GradientNorm
    return kind(parameters, groups)
