"""Attention pooling over padded sentences: an empty sentence masks every position and its softmax is 0/0."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

OP = ("softmax",)
PHASE = "forward"
MODULE = "pool"
STEP = 2
CAUSE = ("mask", "-inf", "every position", "all")

SENTENCES = [[3, 4, 5], [6, 2], [7, 1, 1], [8], [], [9, 3], [2, 2, 4], [5]]
LABELS = [0, 1, 0, 1, 1, 0, 0, 1]


def collate(items):
    width = max(1, *(len(s) for s, _ in items))
    ids = torch.tensor([s + [0] * (width - len(s)) for s, _ in items])
    return {"ids": ids, "mask": ids != 0, "label": torch.tensor([y for _, y in items])}


class AttentionPool(nn.Module):
    def __init__(self, dim: int, keep_empty: bool) -> None:
        super().__init__()
        self.query = nn.Linear(dim, 1)
        self.keep_empty = keep_empty

    def forward(self, h, mask):
        scores = self.query(h).squeeze(-1)
        if self.keep_empty:
            mask = mask | ~mask.any(dim=1, keepdim=True)
        scores = scores.masked_fill(~mask, float("-inf"))
        weights = torch.softmax(scores, dim=1)  # culprit
        return (weights.unsqueeze(-1) * h).sum(dim=1)


class Classifier(nn.Module):
    def __init__(self, keep_empty: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6, padding_idx=0)
        self.pool = AttentionPool(6, keep_empty)
        self.head = nn.Linear(6, 2)

    def forward(self, batch):
        h = torch.tanh(self.embed(batch["ids"]))
        return self.head(self.pool(h, batch["mask"]))


def train(model):
    loader = DataLoader(list(zip(SENTENCES, LABELS, strict=True)), batch_size=4, collate_fn=collate)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in loader:
        loss = nn.functional.cross_entropy(model(batch), batch["label"])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model


def test_broken() -> None:
    torch.manual_seed(0)
    train(Classifier())


def test_healthy() -> None:
    torch.manual_seed(0)
    assert all(p.isfinite().all() for p in train(Classifier(keep_empty=True)).parameters())
