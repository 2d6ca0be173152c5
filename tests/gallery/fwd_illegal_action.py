"""Behaviour cloning with an action mask: the demonstrated action is illegal under the mask and its loss is infinite."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

OP = ("cross_entropy", "cross_entropy_loss", "nll_loss")
PHASE = "forward"
MODULE = None
STEP = 3
CAUSE = ("mask", "-inf", "target", "infinite")


class Policy(nn.Module):
    def __init__(self, observation: int = 5, actions: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(observation, 16), nn.Tanh())
        self.logits = nn.Linear(16, actions)

    def forward(self, obs, legal):
        raw = self.logits(self.trunk(obs))
        return raw.masked_fill(~legal, float("-inf"))


def demonstrations(consistent: bool):
    gen = torch.Generator().manual_seed(21)
    for step in range(4):
        obs = torch.randn(6, 5, generator=gen)
        action = torch.randint(0, 4, (6,), generator=gen)
        legal = torch.rand(6, 4, generator=gen) < 0.5
        legal.scatter_(1, action[:, None], True)
        if step == 2 and not consistent:
            legal[1, 0] = legal[1, 1] = True
            legal[1, action[1]] = False  # the mask of the next state was logged with this action
        yield {"obs": obs, "legal": legal, "action": action}


def clone(consistent: bool):
    torch.manual_seed(9)
    policy = Policy()
    opt = torch.optim.RMSprop(policy.parameters(), lr=1e-3)
    total = 0.0
    for demo in demonstrations(consistent):
        logits = policy(demo["obs"], demo["legal"])
        loss = F.cross_entropy(logits, demo["action"])  # culprit
        opt.zero_grad()
        loss.backward()
        opt.step()
        total += loss.item()
    return policy, total


def test_broken() -> None:
    clone(consistent=False)


def test_healthy() -> None:
    policy, total = clone(consistent=True)
    assert total < float("inf")
    assert all(p.isfinite().all() for p in policy.parameters())
