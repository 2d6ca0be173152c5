"""A weight-normalised head divides its direction by a norm that is exactly zero, as the new class was zero-filled."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

OP = ("div", "true_divide")
PHASE = "forward"
MODULE = "head"
STEP = 3
CAUSE = ("zero", "norm", "eps", "normalize")


class NormLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(outputs, inputs))
        self.gain = nn.Parameter(torch.ones(outputs))

    def forward(self, x):
        norm = self.direction.norm(dim=1, keepdim=True)
        unit = self.direction / norm  # culprit
        return F.linear(x, self.gain[:, None] * unit)

    @torch.no_grad()
    def grow(self, extra: int) -> None:
        """Makes room for new classes."""
        rows = self.new_rows(extra)
        self.direction = nn.Parameter(torch.cat([self.direction, rows]))
        self.gain = nn.Parameter(torch.cat([self.gain, torch.ones(extra)]))

    def new_rows(self, extra):
        return torch.zeros(extra, self.direction.shape[1])


class RandomGrowth(NormLinear):
    def new_rows(self, extra):
        return torch.randn(extra, self.direction.shape[1])


def incremental(head: NormLinear) -> nn.Sequential:
    return nn.Sequential(OrderedDict(stem=nn.Linear(5, 6), act=nn.ELU(), head=head))


def learn(head_cls):
    torch.manual_seed(0)
    model = incremental(head_cls(6, 2))
    for classes in (2, 3):
        if classes > 2:
            model.head.grow(1)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            x, y = torch.randn(8, 5), torch.arange(8) % classes
            loss = F.cross_entropy(model(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
    return model


def test_broken() -> None:
    learn(NormLinear)


def test_healthy() -> None:
    assert all(p.isfinite().all() for p in learn(RandomGrowth).parameters())
