"""The training loop of all three models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle, islice
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Batch = TypeVar("Batch")
Loss = Callable[[nn.Module, Batch], Tensor]


def warmup(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Linear warm-up over `steps` steps, then decay with the inverse square root of the step."""
    return LambdaLR(optimizer, lambda step: min((step + 1) / steps, (steps / (step + 1)) ** 0.5))


def train(
    model: nn.Module,
    loss_fn: Loss[Batch],
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    steps: int,
    scheduler: LambdaLR | None = None,
    max_norm: float | None = 1.0,
) -> list[float]:
    """Train for `steps` steps, cycling over `batches`; the losses."""
    model.train()
    losses = []
    for batch in islice(cycle(batches), steps):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def evaluate(model: nn.Module, loss_fn: Loss[Batch], batches: Iterable[Batch]) -> float:
    """Mean loss over `batches` in eval mode."""
    model.eval()
    losses = [loss_fn(model, batch).item() for batch in batches]
    return sum(losses) / len(losses)
