"""A bottleneck stores its activations in float16 to save memory and the cast overflows."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

OP = ("half", "to", "_to_copy")
PHASE = "forward"
MODULE = "trunk.bottleneck"
STEP = 3
CAUSE = ("float16", "half", "65504", "bfloat16")


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, 4)
        self.up = nn.Linear(4, width)

    def pack(self, code):
        return code.half()  # culprit

    def forward(self, x):
        packed = self.pack(self.down(x))
        return self.up(packed.to(x.dtype))


class RangedBottleneck(Bottleneck):
    def pack(self, code):
        return code.to(torch.bfloat16)


class Net(nn.Module):
    def __init__(self, bottleneck: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Sequential(OrderedDict(stem=nn.Linear(6, 6), bottleneck=bottleneck))
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        return self.head(x + self.trunk(x))


def train(cls):
    torch.manual_seed(4)
    net = Net(cls(6))
    opt = torch.optim.SGD(net.parameters(), lr=1e-14)
    losses = []
    for scale in (1.0, 10.0, 1e6, 1.0):
        x = scale * torch.randn(5, 6)
        loss = net(x).abs().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def test_broken() -> None:
    train(Bottleneck)


def test_healthy() -> None:
    assert max(train(RangedBottleneck)) < float("inf")
