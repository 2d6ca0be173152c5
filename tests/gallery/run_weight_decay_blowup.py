"""Classifier whose lr * weight_decay exceeds 2: every step multiplies the weights by -4 until the logits overflow."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

OP = ("linear", "addmm")
PHASE = "forward"
MODULE = "fc2"
STEP = 33
CAUSE = ("weight decay", "weight_decay", "explod", "grow", "overflow")


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc2(F.leaky_relu(self.fc1(x), 0.1))


def run_epochs(net, optimizer, x, y, epochs):
    curve = []
    for _ in range(epochs):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def make_problem():
    torch.manual_seed(8)
    x = torch.randn(10, 4)
    return MLP(), x, x[:, :3].argmax(dim=1)


def test_broken() -> None:
    net, x, y = make_problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=50.0)  # culprit
    run_epochs(net, optimizer, x, y, epochs=45)


def test_healthy() -> None:
    net, x, y = make_problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=5e-4)
    curve = run_epochs(net, optimizer, x, y, epochs=45)
    assert curve[-1] < curve[0]
    assert all(t.isfinite().all() for p in net.parameters() for t in (p, p.grad))
