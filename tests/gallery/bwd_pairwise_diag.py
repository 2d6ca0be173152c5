"""A metric-learning loss computes all pairwise distances by hand, the zero diagonal included."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

OP = ("sqrt",)
PHASE = "backward"
MODULE = None
STEP = 1
CAUSE = ("zero", "sqrt", "eps")


def pairwise(z, eps=0.0):
    diff = z.unsqueeze(1) - z.unsqueeze(0)
    squared = diff.pow(2).sum(-1)
    if eps:
        return squared.add(eps).sqrt()
    return squared.sqrt()  # culprit


def contrastive(z, label, eps=0.0, margin=1.5):
    d = pairwise(z, eps)
    off_diagonal = ~torch.eye(len(z), dtype=torch.bool)
    same = (label[:, None] == label[None, :]) & off_diagonal
    other = label[:, None] != label[None, :]
    pull = d[same].mean()
    push = torch.relu(margin - d[other]).mean()
    return pull + push


def make_loader():
    torch.manual_seed(0)
    x = torch.randn(24, 5)
    y = torch.arange(24) % 2
    return DataLoader(TensorDataset(x, y), batch_size=8)


def test_broken() -> None:
    loader = make_loader()
    net = nn.Sequential(nn.Linear(5, 10), nn.ELU(), nn.Linear(10, 3))
    opt = torch.optim.SGD(net.parameters(), lr=0.01)
    for x, y in loader:
        opt.zero_grad()
        loss = contrastive(net(x), y)
        loss.backward()
        opt.step()


def test_healthy() -> None:
    loader = make_loader()
    net = nn.Sequential(nn.Linear(5, 10), nn.ELU(), nn.Linear(10, 3))
    opt = torch.optim.SGD(net.parameters(), lr=0.01)
    for x, y in loader:
        opt.zero_grad()
        loss = contrastive(net(x), y, eps=1e-8)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        opt.step()
    assert all(p.isfinite().all() for p in net.parameters())
