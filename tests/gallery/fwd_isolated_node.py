"""Graph convolution with symmetric normalisation: an isolated node has degree zero and degree ** -0.5 is infinite."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

OP = ("pow",)
PHASE = "forward"
MODULE = "convs.0"
STEP = 1
CAUSE = ("zero", "isolated", "degree", "negative exponent", "self loop", "division by zero")


class GCNConv(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, self_loops: bool) -> None:
        super().__init__()
        self.lin = nn.Linear(fan_in, fan_out, bias=False)
        self.self_loops = self_loops

    def forward(self, x, adj):
        if self.self_loops:
            adj = adj + torch.eye(len(adj))
        deg = adj.sum(dim=1)
        inv_sqrt = deg.pow(-0.5)  # culprit
        norm = inv_sqrt[:, None] * adj * inv_sqrt[None, :]
        return norm @ self.lin(x)


class GCN(nn.Module):
    def __init__(self, sizes=(4, 8, 2), self_loops: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList(GCNConv(i, o, self_loops) for i, o in pairwise(sizes))

    def forward(self, x, adj):
        first, second = self.convs
        return second(first(x, adj).relu(), adj)


EDGES = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5)]  # node 6 cites nobody


def citation_graph(n: int = 7):
    adj = torch.zeros(n, n)
    adj[tuple(zip(*EDGES, strict=True))] = 1.0
    return torch.randn(n, 4), adj + adj.T, torch.arange(n) % 2


def train_gcn(self_loops: bool):
    torch.manual_seed(0)
    x, adj, y = citation_graph()
    model = GCN(self_loops=self_loops)
    opt = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(3):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x, adj), y)
        loss.backward()
        opt.step()
    return model


def test_broken() -> None:
    train_gcn(self_loops=False)


def test_healthy() -> None:
    model = train_gcn(self_loops=True)
    assert all(p.isfinite().all() for p in model.parameters())
