"""Geometric median with LBFGS, started on one of the points: the square root of a zero distance has no derivative."""

from __future__ import annotations

import torch

OP = ("sqrt",)
PHASE = "backward"
MODULE = None
STEP = 1
CAUSE = ("zero", "eps", "derivative", "gradient")

POINTS = torch.tensor([[0.0, 0.0], [4.0, 0.5], [1.0, 3.0], [2.0, 2.0]])


def minimise(distance, start: torch.Tensor, rounds: int = 3) -> tuple[torch.Tensor, list[float]]:
    centre = start.clone().requires_grad_()
    lbfgs = torch.optim.LBFGS([centre], lr=0.5, max_iter=4)
    values = []

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        objective = distance(centre).sum()
        objective.backward()
        values.append(objective.item())
        return objective

    for _ in range(rounds):
        lbfgs.step(closure)
    values.extend(centre.grad.tolist())
    return centre.detach(), values


def test_broken() -> None:
    def distance(centre: torch.Tensor) -> torch.Tensor:
        squared = ((POINTS - centre) ** 2).sum(dim=1)
        return torch.sqrt(squared)  # culprit

    minimise(distance, start=POINTS[0])


def test_healthy() -> None:
    def distance(centre: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(((POINTS - centre) ** 2).sum(dim=1) + 1e-6)

    median, values = minimise(distance, start=POINTS[0])
    assert median.isfinite().all()
    assert torch.tensor(values).isfinite().all()
