"""Per-class soft recall divides by a count of zero; clamp and masked_fill hide the 0 / 0 from the loss only."""

from __future__ import annotations

import torch
from torch import nn

OP = ("div",)
PHASE = "backward"
MODULE = None
STEP = 3
CAUSE = ("masked_fill", "mask", "zero", "denominator", "clamp")

N_CLASSES = 3


def make_recall_loss(smooth: float | None = None):
    """Return a loss ``1 - mean soft recall`` over the classes."""

    def loss_fn(logits, target):
        prob = logits.softmax(dim=-1)
        onehot = nn.functional.one_hot(target, N_CLASSES).to(prob)
        hit = (prob * onehot).sum(dim=0)
        support = onehot.sum(dim=0)
        if smooth is not None:
            recall = (hit + smooth) / (support + smooth)
        else:
            recall = (hit / support).clamp(0.0, 1.0)  # culprit
            recall = recall.masked_fill(support == 0, 1.0)
        return 1.0 - recall.mean()

    return loss_fn


class Loop:
    def __init__(self, loss_fn, seed=0):
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Sigmoid(), nn.Linear(6, N_CLASSES))
        self.opt = torch.optim.NAdam(self.net.parameters(), lr=0.01)
        self.loss_fn = loss_fn

    def __call__(self, labels_per_batch):
        losses = []
        for labels in labels_per_batch:
            target = torch.tensor(labels)
            x = torch.stack([target.float(), torch.rand(len(labels))], dim=1)
            loss = self.loss_fn(self.net(x), target)
            self.net.zero_grad()
            loss.backward()
            self.opt.step()
            losses.append(loss.item())
        return losses


LABELS = [[0, 1, 2, 1], [2, 2, 1, 0], [0, 0, 1, 1], [2, 0, 1, 0]]  # the third batch has no 2


def test_broken() -> None:
    Loop(make_recall_loss())(LABELS)


def test_healthy() -> None:
    loop = Loop(make_recall_loss(smooth=1.0))
    losses = loop(LABELS)
    assert torch.tensor(losses).isfinite().all()
    assert all(p.grad.isfinite().all() and p.isfinite().all() for p in loop.net.parameters())
