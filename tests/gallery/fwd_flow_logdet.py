"""A normalising flow with linear mixing layers: logdet of a matrix whose determinant is negative is NaN."""

from __future__ import annotations

import torch
from torch import nn

OP = ("logdet", "log")
PHASE = "forward"
MODULE = "flows.1"
STEP = 1
CAUSE = ("negative", "determinant", "slogdet")


class Mixing(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        q = torch.linalg.qr(torch.randn(dim, dim)).Q
        q[0] *= -torch.det(q).sign()  # a reflection
        self.w = nn.Parameter(q)

    def forward(self, x):
        log_det = torch.logdet(self.w)  # culprit
        return x @ self.w.T, log_det


class MixingAbs(Mixing):
    def forward(self, x):
        return x @ self.w.T, torch.linalg.slogdet(self.w).logabsdet


class Affine(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_s = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return x * self.log_s.exp(), self.log_s.sum()


class Flow(nn.Module):
    def __init__(self, mixing: type[Mixing]) -> None:
        super().__init__()
        self.flows = nn.ModuleList([Affine(3), mixing(3), Affine(3)])

    def forward(self, x):
        total = 0.0
        for flow in self.flows:
            x, log_det = flow(x)
            total = total + log_det
        return (0.5 * (x**2).sum(dim=1) - total).mean()


def maximise_likelihood(mixing):
    torch.manual_seed(14)
    flow = Flow(mixing)
    opt = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for batch in torch.randn(2, 10, 3):
        opt.zero_grad()
        flow(batch).backward()
        opt.step()
    return flow


def test_broken() -> None:
    maximise_likelihood(Mixing)


def test_healthy() -> None:
    assert all(p.isfinite().all() for p in maximise_likelihood(MixingAbs).parameters())
