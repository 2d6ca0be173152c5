"""Binary cross entropy written out: the sigmoid saturates at exactly one and log(1 - p) is minus infinity."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

OP = ("log",)
PHASE = "forward"
MODULE = None
STEP = 3
CAUSE = ("binary_cross_entropy", "logits", "saturat", "zero", "log1p", "logsigmoid")


def bce(p, y):
    positive = y * torch.log(p)
    negative = (1 - y) * torch.log(1 - p)  # culprit
    return -(positive + negative).mean()


def logistic_regression(x, y, loss_from_logits, epochs=1, batch=4):
    w = torch.zeros(x.shape[1], requires_grad=True)
    b = torch.zeros((), requires_grad=True)
    opt = torch.optim.SGD([w, b], lr=0.5)
    losses = []
    for _ in range(epochs):
        for start in range(0, len(x), batch):
            xb, yb = x[start : start + batch], y[start : start + batch]
            loss = loss_from_logits(xb @ w + b, yb)
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
    return torch.tensor(losses), w.detach()


def dataset():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, generator=gen)
    y = (x[:, 0] > 0).float()
    x[10] = torch.tensor([600.0, 0.0, 0.0])
    y[10] = 1.0
    return x, y


def test_broken() -> None:
    x, y = dataset()
    logistic_regression(x, y, lambda logits, t: bce(torch.sigmoid(logits), t))


def test_healthy() -> None:
    losses, w = logistic_regression(*dataset(), F.binary_cross_entropy_with_logits)
    assert losses.isfinite().all()
    assert w.isfinite().all()
