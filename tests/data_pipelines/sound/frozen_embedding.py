"""Embeddings from a frozen module in eval mode, ids outside the table are refused."""

import torch
from torch import nn

POLICY = "reject"
KWARGS = {}

VOCAB = 40


def sample():
    return torch.tensor([[3, 7, 0], [12, 39, 1], [5, 5, 5], [8, 0, 0], [21, 30, 2]])


class FrozenLookup:
    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = nn.Embedding(VOCAB, 6)
        self.table.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, ids):
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError("ids must be integer")
        if ((ids < 0) | (ids >= VOCAB)).any():
            raise ValueError("id outside the vocabulary")
        ids = ids.long()
        weight = (ids > 0).unsqueeze(-1).float()
        return (self.table(ids) * weight).sum(1) / weight.sum(1).clamp(min=1.0)


def build():
    return FrozenLookup()
