"""Embedding rows are projected onto the unit sphere in place; the zero padding row, first seen at step 2, is 0 / 0."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

OP = ("div",)
PHASE = "forward"
MODULE = "encoder.lookup"
STEP = 2
CAUSE = ("zero", "norm", "eps")

BATCHES = torch.tensor([[[1, 2, 3], [4, 5, 2]], [[3, 1, 0], [2, 0, 0]], [[5, 4, 1], [1, 2, 0]]])


class UnitEmbedding(nn.Embedding):
    def unit_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(rows, dim=1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            used = ids.unique()
            self.weight[used] = self.unit_rows(self.weight[used])
        return super().forward(ids)


class FastUnitEmbedding(UnitEmbedding):
    def unit_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows / rows.square().sum(dim=1, keepdim=True).sqrt()  # culprit


class SentenceEncoder(nn.Module):
    def __init__(self, lookup: nn.Embedding) -> None:
        super().__init__()
        self.lookup = lookup
        self.mix = nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.mix(self.lookup(ids)).mean(dim=1)


def classifier(embedding_cls: type[nn.Embedding]) -> nn.Module:
    torch.manual_seed(0)
    encoder = SentenceEncoder(embedding_cls(6, 4, padding_idx=0))
    return nn.Sequential(OrderedDict(encoder=encoder, top=nn.Linear(4, 2)))


def fit(model: nn.Module) -> list[float]:
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, labels = [], torch.tensor([0, 1])
    for ids in BATCHES:
        loss = nn.functional.cross_entropy(model(ids), labels)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def test_broken() -> None:
    fit(classifier(FastUnitEmbedding))


def test_healthy() -> None:
    model = classifier(UnitEmbedding)
    assert torch.tensor(fit(model)).isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
