"""A squashed policy inverts tanh after scaling by 1 - 1e-8, which is 1.0 in float32."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributions import Normal

OP = ("atanh",)
PHASE = "backward"
MODULE = "actor.squash"
STEP = 2
CAUSE = ("1e-8", "float32", "eps", "clamp", "atanh")


class SquashedLogProb(nn.Module):
    eps = 1e-8

    def forward(self, action, mean, log_std):
        u = torch.atanh(action * (1 - self.eps)).clamp(-8.0, 8.0)  # culprit
        log_det = torch.log1p(-action.square() + 1e-4).sum(-1)
        return Normal(mean, log_std.exp(), validate_args=False).log_prob(u).sum(-1) - log_det


class Actor(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.mean = nn.Linear(3, 2)
        self.log_std = nn.Parameter(torch.zeros(2))
        self.squash = SquashedLogProb()
        self.squash.eps = eps

    def forward(self, obs, noise):
        mean = self.mean(obs)
        action = torch.tanh(mean + noise * self.log_std.exp())
        return action, self.squash(action, mean, self.log_std)


class SAC(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.actor = Actor(eps)
        self.critic = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1)).requires_grad_(False)

    def forward(self, obs, noise):
        action, log_prob = self.actor(obs, noise)
        return 0.05 * log_prob.mean() - self.critic(torch.cat([obs, action], dim=-1)).mean()


def learn(eps):
    torch.manual_seed(19)
    sac = SAC(eps)
    opt = torch.optim.Adam(sac.actor.parameters(), lr=1e-3)
    for i in range(3):
        obs, noise = torch.randn(4, 3), torch.randn(4, 2)
        if i == 1:
            obs[0] *= 60.0  # a glitch of the simulator saturates the policy
        opt.zero_grad()
        loss = sac(obs, noise)
        loss.backward()
        opt.step()
        yield loss, *(p.grad for p in sac.actor.parameters()), *sac.actor.parameters()


def test_broken() -> None:
    assert len(list(learn(eps=1e-8))) == 3


def test_healthy() -> None:
    assert all(t.isfinite().all() for tensors in learn(eps=1e-6) for t in tensors)
