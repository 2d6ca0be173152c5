"""Variational autoencoder: the unbounded log-variance is exponentiated in the KL term and overflows."""

from __future__ import annotations

import torch
from torch import nn

OP = ("exp",)
PHASE = "forward"
MODULE = None
STEP = 2
CAUSE = ("overflow", "clamp", "logvar", "88", "large")


class Encoder(nn.Module):
    def __init__(self, clamp: float | None) -> None:
        super().__init__()
        self.hidden = nn.Linear(10, 12)
        self.mu = nn.Linear(12, 2)
        self.logvar = nn.Linear(12, 2)
        self.clamp = clamp

    def forward(self, x):
        h = torch.relu(self.hidden(x))
        logvar = self.logvar(h)
        if self.clamp is not None:
            logvar = logvar.clamp(-self.clamp, self.clamp)
        return self.mu(h), logvar


class VAE(nn.Module):
    def __init__(self, clamp: float | None = None) -> None:
        super().__init__()
        self.encoder = Encoder(clamp)
        self.decoder = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 10), nn.Sigmoid())

    def forward(self, x):
        mu, logvar = self.encoder(x)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return self.decoder(z), mu, logvar


def elbo(x, recon, mu, logvar, beta=0.1):
    rec = (recon - x.clamp(0, 1)).pow(2).sum(dim=1).mean()
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1).mean()  # culprit
    return rec + beta * kl


def train(vae):
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    x = torch.rand(3, 4, 10)
    x[1, 0] *= 1000.0  # an image that was never divided by 255, and brightened
    values = []
    for batch in x:
        loss = elbo(batch, *vae(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.detach())
    return torch.stack(values)


def test_broken() -> None:
    torch.manual_seed(11)
    train(VAE())


def test_healthy() -> None:
    torch.manual_seed(11)
    assert train(VAE(clamp=10.0)).isfinite().all()
