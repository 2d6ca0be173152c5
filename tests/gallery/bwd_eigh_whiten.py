"""ZCA whitening differentiates eigh of a covariance with repeated eigenvalues."""

from __future__ import annotations

import torch
from torch import nn

OP = ("linalg_eigh", "eigh")
PHASE = "backward"
MODULE = "net.whiten"
STEP = 1
CAUSE = ("eigenvalue", "degenerate", "repeated", "equal", "distinct")


class Whiten(nn.Module):
    eps = 1e-3

    def forward(self, x):
        x = x - x.mean(dim=0)
        cov = x.mT @ x / len(x)
        values, vectors = torch.linalg.eigh(cov)  # culprit
        return x @ (vectors * (values + self.eps).rsqrt()) @ vectors.mT


class CholeskyWhiten(Whiten):
    def forward(self, x):
        x = x - x.mean(dim=0)
        cov = x.mT @ x / len(x) + self.eps * torch.eye(x.shape[1])
        return torch.linalg.solve_triangular(torch.linalg.cholesky(cov), x.mT, upper=False).mT


class Regressor(nn.Module):
    def __init__(self, whiten):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.net = nn.ModuleDict({"whiten": whiten, "out": nn.Linear(3, 1)})

    def forward(self, x):
        return self.net["out"](self.net["whiten"](self.gain * x)).squeeze(1)


def designs():
    # a full factorial design: orthogonal columns of equal variance, exactly so while the gain is still 1
    yield torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    yield torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def fit(whiten):
    torch.manual_seed(4)
    model = Regressor(whiten)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for x in designs():
        opt.zero_grad()
        loss = (model(x) - x[:, 0] * x[:, 1]).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return model, losses


def test_broken() -> None:
    fit(Whiten())


def test_healthy() -> None:
    model, losses = fit(CholeskyWhiten())
    assert torch.tensor(losses).isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
