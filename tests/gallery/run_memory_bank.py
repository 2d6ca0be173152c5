"""Contrastive memory bank: a zero key normalised without eps at step 2 is queued and reaches the loss at step 4."""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

OP = ("div",)
PHASE = "forward"
MODULE = None
STEP = 2
CAUSE = ("zero", "norm", "eps")


def unit(keys: torch.Tensor) -> torch.Tensor:
    return keys / keys.norm(dim=1, keepdim=True)  # culprit


def unit_safe(keys: torch.Tensor) -> torch.Tensor:
    return F.normalize(keys, dim=1, eps=1e-6)


class Bank:
    delay = 2  # keys become negatives two steps after they were pushed

    def __init__(self) -> None:
        self.queue: deque[torch.Tensor] = deque()

    def push(self, keys: torch.Tensor) -> None:
        self.queue.append(keys)

    def negatives(self) -> torch.Tensor | None:
        return self.queue.popleft() if len(self.queue) == self.delay else None


def pretrain(normalise, steps: int = 6) -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(12)
    encoder = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh())
    opt = torch.optim.SGD(encoder.parameters(), lr=0.05)
    images = torch.randn(steps, 5, 4)
    images[1, 2] = 0.0  # an all-black crop
    bank, losses = Bank(), []
    for x in images:
        query = F.normalize(encoder(x + 0.1), dim=1)
        with torch.no_grad():
            key = normalise(encoder(x))
        negatives = bank.negatives()
        loss = (1.0 - (query * F.normalize(encoder(x + 0.05), dim=1)).sum(1)).mean()
        if negatives is not None:
            loss = loss + torch.logsumexp(query @ negatives.T / 0.5, dim=1).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        bank.push(key)
        losses.append(loss.detach())
    return encoder, losses


def test_broken() -> None:
    pretrain(unit)


def test_healthy() -> None:
    encoder, losses = pretrain(unit_safe)
    assert torch.stack(losses).isfinite().all()
    assert encoder[0].weight.isfinite().all()
    assert encoder[0].weight.grad.isfinite().all()
