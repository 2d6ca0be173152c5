"""Linear regression with a learning rate far above 2 / largest eigenvalue, diverging until the loss overflows."""

from __future__ import annotations

import torch
from torch import nn

OP = ("mse_loss", "MSELoss", "mean", "pow", "mul", "linear", "addmm", "mm", "matmul")
PHASE = "forward"
MODULE = None
STEP = 16
CAUSE = ("explod", "learning rate", "diverg")


def regression_data(n: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(5)
    x = 2.0 * torch.randn(n, 3, generator=gen)
    w = torch.tensor([[1.5], [-2.0], [0.5]])
    return x, x @ w + 0.3 + 0.1 * torch.randn(n, 1, generator=gen)


def test_broken() -> None:
    torch.manual_seed(0)
    x, y = regression_data()
    model = nn.Linear(3, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=1.5)  # culprit
    for _ in range(40):
        loss = ((model(x) - y) ** 2).mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()


def test_healthy() -> None:
    torch.manual_seed(0)
    x, y = regression_data()
    model = nn.Linear(3, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(40):
        loss = ((model(x) - y) ** 2).mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        assert loss.isfinite()
        assert model.weight.grad.isfinite().all()
    assert loss < 0.1
    assert model.weight.isfinite().all()
