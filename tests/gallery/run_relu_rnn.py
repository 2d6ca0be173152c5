"""Sequence regressor on a ReLU nn.RNN whose recurrent matrix is too large: the state overflows over time."""

from __future__ import annotations

import torch
from torch import nn

OP = ("rnn_relu", "rnn", "RNN", "linear", "addmm", "mm", "matmul", "add", "relu")
PHASE = "forward"
MODULE = "encoder.rnn"
STEP = 1
CAUSE = ("explod", "overflow", "grow", "recurren")


class Encoder(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, hidden, nonlinearity="relu", batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(x)  # culprit
        return states[:, -1]


class SequenceRegressor(nn.Module):
    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.encoder = Encoder(hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.encoder(x)).squeeze(1)


def adding_problem(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(batch, length, 2)
    return x, x[..., 0].mean(dim=1)


def train(model: SequenceRegressor, steps: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    opt = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(steps):
        x, y = adding_problem(4, 80)
        loss = (model(x) - y).abs().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.detach())
    return losses


def test_broken() -> None:
    torch.manual_seed(0)
    model = SequenceRegressor()
    nn.init.uniform_(model.encoder.rnn.weight_hh_l0, 0.0, 2.0)
    train(model)


def test_healthy() -> None:
    torch.manual_seed(0)
    model = SequenceRegressor()
    with torch.no_grad():
        model.encoder.rnn.weight_hh_l0.copy_(0.9 * torch.eye(6))
    losses = train(model)
    assert torch.stack(losses).isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
