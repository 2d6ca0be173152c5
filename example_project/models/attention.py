"""Multi-head attention, written out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """bool[length, length], True where a position must not look: everything after itself."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention over several heads (Vaswani et al. 2017, section 3.2).

    Args:
        d_model: width of queries, keys and values.
        heads: number of heads; divides `d_model`.
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        if d_model % heads:
            raise ValueError(f"heads must divide d_model={d_model}, got {heads}")
        self.heads = heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, query: Tensor, memory: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Attend from float[batch, q, d_model] to float[batch, k, d_model].

        `blocked` is a bool that broadcasts to [batch, heads, q, k], True where a query must not look; every query
        needs one key that is left open.
        """
        q, k, v = self._split(self.query(query)), self._split(self.key(memory)), self._split(self.value(memory))
        scores = self.scores(q, k)
        if blocked is not None:
            scores = scores.masked_fill(blocked, float("-inf"))
        mixed = self.weights(scores) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Similarities [batch, heads, q, k], divided by sqrt(d_k) so that their variance does not grow with d_k."""
        return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])

    def weights(self, scores: Tensor) -> Tensor:
        """Weights over the keys that sum to 1."""
        return torch.softmax(scores, dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
