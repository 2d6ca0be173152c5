"""Linear utility maximised with centered RMSprop: with a constant gradient the variance estimate turns negative."""

from __future__ import annotations

import torch
from torch import nn

OP = ("sqrt", "sqrt_", "addcmul", "RMSprop")
PHASE = "optimizer"
MODULE = None
STEP = 24
CAUSE = ("centered", "negative", "variance")


class Allocation(nn.Module):
    """Unconstrained portfolio weights; the utility is linear in them."""

    def __init__(self, assets: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(assets))

    def forward(self, returns: torch.Tensor) -> torch.Tensor:
        return returns @ self.weights


def optimise(make_optimizer, steps: int = 60) -> tuple[Allocation, torch.Tensor]:
    returns = torch.tensor([[0.1, 0.3, 0.7, 1.1, 1.7, 0.9, 2.3, 0.37], [0.3, 0.2, 0.1, 0.7, 1.3, 0.5, 0.9, 0.71]])
    policy = Allocation(returns.shape[1])
    optimizer = make_optimizer(policy)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -policy(returns).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return policy, torch.stack(losses)


def test_broken() -> None:
    def make_optimizer(policy: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(policy.parameters(), lr=1e-3, alpha=0.5, centered=True)  # culprit

    optimise(make_optimizer)


def test_healthy() -> None:
    policy, losses = optimise(lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3, alpha=0.5))
    assert losses.isfinite().all()
    assert policy.weights.isfinite().all()
    assert policy.weights.grad.isfinite().all()
