"""A policy-gradient entropy bonus is p * log(p) inside a where, and illegal moves have probability zero."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributions.utils import logits_to_probs

OP = ("log", "mul")
PHASE = "backward"
MODULE = None
STEP = 2
CAUSE = ("where", "zero", "xlogy", "entr", "log of")


class Agent:
    def __init__(self, n_obs: int, n_moves: int, bonus: float = 0.01):
        self.policy = nn.Sequential(nn.Linear(n_obs, 16), nn.Tanh(), nn.Linear(16, n_moves))
        self.optim = torch.optim.Adam(self.policy.parameters(), lr=2e-3)
        self.bonus = bonus

    def entropy(self, p):
        return -torch.where(p > 0, p * torch.log(p), torch.zeros_like(p)).sum(-1)  # culprit

    def update(self, obs, legal, move, advantage):
        logits = self.policy(obs).masked_fill(~legal, float("-inf"))
        p = logits_to_probs(logits)
        log_p = nn.functional.cross_entropy(logits, move, reduction="none").neg()
        loss = -(advantage * log_p).mean() - self.bonus * self.entropy(p).mean()
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return loss.item()


class CarefulAgent(Agent):
    def entropy(self, p):
        return -(p * torch.log(p.clamp_min(1e-8))).sum(-1)


def rollouts(seed=0):
    g = torch.Generator().manual_seed(seed)
    for turn in range(4):
        legal = torch.ones(5, 4, dtype=torch.bool)
        if turn >= 1:
            legal[:, 3] = False
        yield torch.randn(5, 6, generator=g), legal, torch.randint(0, 3, (5,), generator=g), torch.randn(5, generator=g)


def test_broken() -> None:
    torch.manual_seed(0)
    agent = Agent(6, 4)
    for rollout in rollouts():
        agent.update(*rollout)


def test_healthy() -> None:
    torch.manual_seed(0)
    agent = CarefulAgent(6, 4)
    for rollout in rollouts():
        assert torch.tensor(agent.update(*rollout)).isfinite()
        for p in agent.policy.parameters():
            assert p.isfinite().all()
            assert p.grad.isfinite().all()
