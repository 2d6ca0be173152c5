"""A rotation head projects onto SO(3) by SVD, and its zero initialisation makes all singular values equal."""

from __future__ import annotations

import torch
from torch import nn

OP = ("linalg_svd", "svd")
PHASE = "backward"
MODULE = "head"
STEP = 1
CAUSE = ("singular value", "degenerate", "repeated", "equal", "distinct")


class ProcrustesHead(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, 9)
        nn.init.zeros_(self.fc.weight)
        self.fc.bias.data = torch.eye(3).flatten()

    def forward(self, h):
        u, _, vh = torch.linalg.svd(self.fc(h).view(-1, 3, 3))  # culprit
        return u @ vh


class GramSchmidtHead(ProcrustesHead):
    def forward(self, h):
        a, b, _ = self.fc(h).view(-1, 3, 3).unbind(dim=1)
        x = nn.functional.normalize(a, dim=-1)
        y = nn.functional.normalize(b - (x * b).sum(-1, keepdim=True) * x, dim=-1)
        return torch.stack([x, y, torch.linalg.cross(x, y)], dim=1)


class PoseNet(nn.Module):
    def __init__(self, head_cls):
        super().__init__()
        self.backbone, self.head = nn.Linear(5, 10), head_cls(10)

    def forward(self, x):
        return self.head(self.backbone(x).relu())


def one_epoch(model, data, optimizer):
    total = 0.0
    for x, rotation in data:
        loss = nn.functional.mse_loss(model(x), rotation)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return torch.tensor(total)


def dataset(n=1):
    g = torch.Generator().manual_seed(13)
    return [(torch.randn(4, 5, generator=g), torch.linalg.qr(torch.randn(4, 3, 3, generator=g))[0]) for _ in range(n)]


def test_broken() -> None:
    torch.manual_seed(0)
    model = PoseNet(ProcrustesHead)
    one_epoch(model, dataset(), torch.optim.Adam(model.parameters(), lr=1e-3))


def test_healthy() -> None:
    torch.manual_seed(0)
    model = PoseNet(GramSchmidtHead)
    assert one_epoch(model, dataset(3), torch.optim.Adam(model.parameters(), lr=1e-3)).isfinite()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
