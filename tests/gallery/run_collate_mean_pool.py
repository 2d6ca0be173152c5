"""collate_fn averages the token vectors of every document; an empty document in batch 3 divides by a length of zero."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

OP = ("div",)
PHASE = "data"
MODULE = None
STEP = 3
CAUSE = ("zero", "length", "divi")

LENGTHS = [3, 2, 1, 4, 2, 0, 3, 1]


def documents() -> list[tuple[torch.Tensor, int]]:
    gen = torch.Generator().manual_seed(2)
    return [(torch.randn(n, 4, generator=gen), i % 2) for i, n in enumerate(LENGTHS)]


def collate(samples):
    docs, labels = zip(*samples, strict=True)
    lengths = torch.tensor([len(d) for d in docs]).unsqueeze(1)
    padded = pad_sequence(list(docs), batch_first=True)
    pooled = padded.sum(dim=1) / lengths  # culprit
    return pooled, torch.tensor(labels)


def collate_safe(samples):
    docs, labels = zip(*samples, strict=True)
    pooled = torch.stack([d.sum(dim=0) / max(len(d), 1) for d in docs])
    return pooled, torch.tensor(labels)


def train(collate_fn) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    clf = nn.Sequential(nn.Linear(4, 8), nn.Mish(), nn.Linear(8, 2))
    optim = torch.optim.NAdam(clf.parameters(), lr=1e-2)
    trace = []
    for pooled, labels in DataLoader(documents(), batch_size=2, collate_fn=collate_fn):
        optim.zero_grad()
        nll = nn.functional.cross_entropy(clf(pooled), labels)
        nll.backward()
        optim.step()
        trace.append(nll.detach())
    return clf, torch.stack(trace)


def test_broken() -> None:
    train(collate)


def test_healthy() -> None:
    clf, trace = train(collate_safe)
    assert trace.isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in clf.parameters())
