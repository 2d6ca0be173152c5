"""Image search under inference_mode: masked average pooling of a fully masked gallery entry is 0 / 0."""

from __future__ import annotations

import torch
from torch import nn

OP = ("div", "div_")
PHASE = "eval"
MODULE = "pool"
STEP = None
CAUSE = ("zero", "mask", "divi", "clamp")


class MaskedMean(nn.Module):
    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        summed = (tokens * weight).sum(dim=1)
        return summed.div(weight.sum(dim=1))  # culprit


class MaskedMeanClamped(nn.Module):
    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


class Embedder(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.patch = nn.Linear(6, 8)
        self.pool = pool
        self.norm = nn.LayerNorm(8)

    def forward(self, patches: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.norm(self.pool(self.patch(patches), mask))


class SearchIndex:
    def __init__(self, embedder: nn.Module) -> None:
        self.embedder = embedder.eval()
        self.vectors: list[torch.Tensor] = []

    @torch.inference_mode()
    def add(self, patches: torch.Tensor, mask: torch.Tensor) -> None:
        self.vectors.append(self.embedder(patches, mask))

    @torch.inference_mode()
    def query(self, patches: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.embedder(patches, mask) @ torch.cat(self.vectors).T


def search(pool: nn.Module) -> torch.Tensor:
    torch.manual_seed(0)
    index = SearchIndex(Embedder(pool))
    for empty in (None, 1, None):
        mask = torch.ones(2, 5, dtype=torch.bool)
        mask[0, 3:] = False
        if empty is not None:
            mask[empty] = False
        index.add(torch.randn(2, 5, 6), mask)
    return index.query(torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool))


def test_broken() -> None:
    search(MaskedMean())


def test_healthy() -> None:
    assert search(MaskedMeanClamped()).isfinite().all()
