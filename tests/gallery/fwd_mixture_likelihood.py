"""Gaussian mixture fitted by gradient descent: a product of 40 densities underflows and its log is minus infinity."""

from __future__ import annotations

import math

import torch
from torch import nn

OP = ("log",)
PHASE = "forward"
MODULE = ""
STEP = 1
CAUSE = ("logsumexp", "underflow", "zero", "log")


class GaussianMixture(nn.Module):
    def __init__(self, k: int, dim: int) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.randn(k, dim))
        self.log_scale = nn.Parameter(torch.zeros(k, dim))
        self.mix = nn.Parameter(torch.zeros(k))

    def densities(self, x):
        scale = self.log_scale.exp()
        z = (x[:, None, :] - self.means) / scale
        return torch.exp(-0.5 * z**2) / (scale * math.sqrt(2 * math.pi))

    def forward(self, x):
        likelihood = self.densities(x).prod(dim=-1) @ self.mix.softmax(dim=0)
        return -likelihood.log().mean()  # culprit


class LogSpaceMixture(GaussianMixture):
    def forward(self, x):
        z = (x[:, None, :] - self.means) / self.log_scale.exp()
        log_p = (-0.5 * z**2 - self.log_scale - 0.5 * math.log(2 * math.pi)).sum(dim=-1)
        return -torch.logsumexp(log_p + self.mix.log_softmax(dim=0), dim=1).mean()


def fit(cls):
    torch.manual_seed(1)
    data = 2.5 * torch.randn(20, 40)
    gmm = cls(3, 40)
    optimizer = torch.optim.Adam(gmm.parameters(), lr=0.05)
    nll = None
    for _ in range(3):
        optimizer.zero_grad()
        nll = gmm(data)
        nll.backward()
        optimizer.step()
    return gmm, nll


def test_broken() -> None:
    fit(GaussianMixture)


def test_healthy() -> None:
    gmm, nll = fit(LogSpaceMixture)
    assert nll.isfinite()
    assert all(p.isfinite().all() for p in gmm.parameters())
