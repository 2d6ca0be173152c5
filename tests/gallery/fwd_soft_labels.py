"""Distillation with soft labels: the loss takes the log of a softmax, whose small entries have underflowed to zero."""

from __future__ import annotations

import torch
from torch import nn

OP = ("log",)
PHASE = "forward"
MODULE = None
STEP = 3
CAUSE = ("log_softmax", "log of a softmax", "logsumexp")


def soft_cross_entropy(logits, soft_targets):
    probs = torch.softmax(logits, dim=-1)
    log_probs = torch.log(probs)  # culprit
    return -(soft_targets * log_probs).sum(dim=-1).mean()


def stable_soft_cross_entropy(logits, soft_targets):
    return -(soft_targets * torch.log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def make_batches():
    gen = torch.Generator().manual_seed(0)
    for index in range(5):
        x = torch.randn(8, 6, generator=gen)
        if index == 2:
            x[5] *= 900.0  # one recording was stored in microvolts
        teacher = torch.softmax(torch.randn(8, 4, generator=gen), dim=-1)
        yield x, teacher


def train(loss_fn):
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
    losses = []
    for x, teacher in make_batches():
        optimizer.zero_grad()
        loss = loss_fn(student(x), teacher)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_broken() -> None:
    assert len(train(soft_cross_entropy)) == 5


def test_healthy() -> None:
    losses = train(stable_soft_cross_entropy)
    assert all(torch.isfinite(torch.tensor(losses)))
