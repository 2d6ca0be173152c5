"""WGAN-GP: the norm of the critic's input gradient is taken by hand, and a sample in the dead zone has none."""

from __future__ import annotations

import torch
from torch import nn

OP = ("sqrt",)
PHASE = "backward"
MODULE = None
STEP = 2
CAUSE = ("zero", "sqrt", "eps")


def make_critic():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        critic[0].weight.abs_().add_(0.1)
        critic[0].bias.zero_()
    return critic


def gradient_penalty(critic, real, fake, eps=0.0):
    mix = torch.rand(len(real), 1)
    x = (mix * real + (1 - mix) * fake).requires_grad_()
    (grad,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    sq = grad.pow(2).sum(dim=1)
    if eps:
        sq = sq + eps
    norm = torch.sqrt(sq)  # culprit
    return (norm - 1).pow(2).mean()


def batches():
    g = torch.Generator().manual_seed(9)
    for i in range(3):
        real = torch.rand(4, 4, generator=g)
        fake = torch.rand(4, 4, generator=g)
        if i == 1:
            real[2], fake[2] = -1.0, -2.0
        yield real, fake


def train_critic(eps=0.0):
    critic = make_critic()
    opt = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))
    for real, fake in batches():
        wasserstein = critic(fake).mean() - critic(real).mean()
        penalty = gradient_penalty(critic, real, fake, eps)
        loss = wasserstein + 10.0 * penalty
        opt.zero_grad()
        loss.backward()
        opt.step()
        yield loss, critic


def test_broken() -> None:
    for _loss, _critic in train_critic():
        pass


def test_healthy() -> None:
    for loss, critic in train_critic(eps=1e-12):
        assert loss.isfinite()
        assert all(p.isfinite().all() for p in critic.parameters())
        assert all(p.grad.isfinite().all() for p in critic.parameters() if p.grad is not None)
