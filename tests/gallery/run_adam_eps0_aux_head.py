"""Two-task regressor whose auxiliary loss weight is zero, trained with Adam(eps=0): 0 / 0 in the update."""

from __future__ import annotations

import torch
from torch import nn

OP = ("addcdiv", "addcdiv_", "div", "Adam")
PHASE = "optimizer"
MODULE = None
STEP = 1
CAUSE = ("eps",)


class TwoTask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.price = nn.Linear(8, 1)
        self.delay = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.trunk(x)
        return self.price(h).squeeze(-1), self.delay(h).squeeze(-1)


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, aux_weight: float = 0.0, steps: int = 4) -> list[float]:
    gen = torch.Generator().manual_seed(1)
    history = []
    for _ in range(steps):
        x = torch.randn(12, 5, generator=gen)
        price, delay = model(x)
        loss = (price - x[:, 0]).square().mean() + aux_weight * (delay - x[:, 1]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def test_broken() -> None:
    torch.manual_seed(0)
    model = TwoTask()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=0.0)  # culprit
    fit(model, optimizer)


def test_healthy() -> None:
    torch.manual_seed(0)
    model = TwoTask()
    history = fit(model, torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-8))
    assert torch.tensor(history).isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
