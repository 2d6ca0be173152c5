"""Metric learning averages over the violating triplets only; a batch without any gives the mean of nothing."""

from __future__ import annotations

import torch
from torch import nn

OP = ("mean",)
PHASE = "forward"
MODULE = ""
STEP = 3
CAUSE = ("empty", "no element", "zero elements")


class HardTripletLoss(nn.Module):
    def __init__(self, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin

    def violations(self, anchor, positive, negative):
        d_pos = (anchor - positive).pow(2).sum(1)
        d_neg = (anchor - negative).pow(2).sum(1)
        return torch.relu(d_pos - d_neg + self.margin)

    def forward(self, anchor, positive, negative):
        losses = self.violations(anchor, positive, negative)
        return losses[losses > 0].mean()  # culprit


class SafeHardTripletLoss(HardTripletLoss):
    def forward(self, anchor, positive, negative):
        losses = self.violations(anchor, positive, negative)
        return losses.sum() / (losses > 0).sum().clamp(min=1)


def epoch(net, criterion, optimizer):
    history = []
    for i in range(4):
        anchor = torch.randn(6, 4)
        positive = anchor + 0.05 * torch.randn(6, 4)
        # the third batch pairs every anchor with a far-away negative
        negative = anchor + (50.0 if i == 2 else 0.05) * (1 + torch.rand(6, 4))
        loss = criterion(*map(net, (anchor, positive, negative)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def run(criterion):
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    return epoch(net, criterion, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9))


def test_broken() -> None:
    run(HardTripletLoss())


def test_healthy() -> None:
    assert torch.tensor(run(SafeHardTripletLoss())).isfinite().all()
