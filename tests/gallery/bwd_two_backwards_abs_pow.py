"""Two tasks, two backward() calls; the second loss is |error| ** 0.3 and meets an error of exactly zero."""

from __future__ import annotations

import torch
from torch import nn

OP = ("pow",)
PHASE = "backward"
MODULE = None
STEP = 2
CAUSE = ("zero", "exponent", "eps")


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh())
        self.kind = nn.Linear(8, 3)
        self.size = nn.Linear(8, 1, bias=False)

    def forward(self, x):
        z = self.trunk(x)
        return self.kind(z), self.size(z).squeeze(-1)


def robust(error, power=0.3):
    return torch.mean(torch.abs(error) ** power)  # culprit


def robust_smooth(error, power=0.3):
    return ((error.square() + 1e-4) ** (power / 2)).mean()


def batches():
    g = torch.Generator().manual_seed(21)
    for i in range(3):
        x = torch.randn(6, 4, generator=g)
        if i == 1:
            x[0] = 0.0  # an empty image has size zero, and the model knows it
        yield x, torch.randint(0, 3, (6,), generator=g), x.abs().sum(dim=1)


def training_run(size_loss, check=lambda *_: None):
    torch.manual_seed(1)
    model = TwoHeads()
    opt = torch.optim.SGD(model.parameters(), lr=0.02)
    for x, kind, size in batches():
        opt.zero_grad()
        kind_logits, size_hat = model(x)
        loss_kind = nn.functional.cross_entropy(kind_logits, kind)
        loss_size = size_loss(size_hat - size)
        loss_kind.backward(retain_graph=True)
        loss_size.backward()
        opt.step()
        check(model, loss_kind, loss_size)


def test_broken() -> None:
    training_run(robust)


def test_healthy() -> None:
    def check(model, *losses):
        assert all(loss.isfinite() for loss in losses)
        assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())

    training_run(robust_smooth, check)
