"""Two-tower retrieval computes a cosine by hand; an item without tags has a zero vector and its cosine is 0/0."""

from __future__ import annotations

import torch
from torch import nn

OP = ("div", "true_divide")
PHASE = "forward"
MODULE = "similarity"
STEP = 2
CAUSE = ("zero", "norm", "eps", "cosine_similarity")


class Cosine(nn.Module):
    def forward(self, a, b):
        dot = (a * b).sum(dim=-1)
        lengths = a.norm(dim=-1) * b.norm(dim=-1)
        return dot / lengths  # culprit


class TwoTower(nn.Module):
    def __init__(self, similarity: nn.Module) -> None:
        super().__init__()
        self.user = nn.EmbeddingBag(12, 6, mode="sum")
        self.item = nn.Embedding(15, 6, padding_idx=0)
        self.similarity = similarity

    def forward(self, history, tags):
        user = self.user(history)
        item = self.item(tags).sum(dim=1)
        return self.similarity(user, item)


CLICKS = [
    {"history": [[1, 2], [3, 4]], "tags": [[5, 6, 0], [7, 0, 0]], "clicked": [1.0, -1.0]},
    {"history": [[2, 5], [6, 1]], "tags": [[0, 0, 0], [8, 9, 1]], "clicked": [-1.0, 1.0]},
    {"history": [[7, 7], [8, 9]], "tags": [[2, 3, 4], [1, 0, 0]], "clicked": [1.0, 1.0]},
]


def train(model: nn.Module):
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    for record in CLICKS:
        batch = {name: torch.tensor(values) for name, values in record.items()}
        score = model(batch["history"], batch["tags"])
        loss = (score - batch["clicked"]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss


def test_broken() -> None:
    torch.manual_seed(0)
    train(TwoTower(Cosine()))


def test_healthy() -> None:
    torch.manual_seed(0)
    model = TwoTower(nn.CosineSimilarity(dim=-1, eps=1e-8))
    assert torch.isfinite(train(model))
    assert all(torch.isfinite(p).all() for p in model.parameters())
