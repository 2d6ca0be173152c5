"""Small synthetic tasks and the losses that go with them, for the sick programs and their healthy twins."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


def regression(width: int = 16, *, rows: int = 32, count: int = 4) -> list[Pair]:
    """A smooth function of a few directions, one target."""
    teacher = torch.randn(width, 2) / width**0.5
    pairs = []
    for _ in range(count):
        x = torch.randn(rows, width)
        pairs.append((x, torch.tanh(x @ teacher).sum(1, keepdim=True)))
    return pairs


def classes(width: int = 16, number: int = 4, *, rows: int = 32, count: int = 4) -> list[Pair]:
    """Gaussian blobs, one per class."""
    centres = torch.randn(number, width) * 1.5
    pairs = []
    for _ in range(count):
        y = torch.randint(number, (rows,))
        x = (centres[y] + torch.randn(rows, width)) / 1.8
        pairs.append((x, y))
    return pairs


def images(channels: int = 3, size: int = 8, number: int = 4, *, rows: int = 16, count: int = 4) -> list[Pair]:
    """One noisy pattern per class."""
    patterns = torch.randn(number, channels, size, size)
    pairs = []
    for _ in range(count):
        y = torch.randint(number, (rows,))
        x = (patterns[y] + torch.randn(rows, channels, size, size)) / 1.4
        pairs.append((x, y))
    return pairs


def series(width: int = 8, length: int = 20, *, rows: int = 16, count: int = 4) -> list[Pair]:
    """Sequences whose last third decides the target."""
    teacher = torch.randn(width, 1) / width**0.5
    pairs = []
    for _ in range(count):
        x = torch.randn(rows, length, width)
        late = x[:, -max(length // 3, 1) :].mean(1) * max(length // 3, 1) ** 0.5
        pairs.append((x, torch.tanh(late @ teacher)))
    return pairs


def tokens(vocabulary: int = 24, length: int = 12, *, rows: int = 16, count: int = 4) -> list[Tensor]:
    """Token rows in which each token decides the next."""
    follow = torch.randperm(vocabulary)
    batches = []
    for _ in range(count):
        columns = [torch.randint(vocabulary, (rows,))]
        for _ in range(length):
            columns.append(follow[columns[-1]])
        batches.append(torch.stack(columns, 1))
    return batches


def mse(model: nn.Module, batch: Pair) -> Tensor:
    """Mean squared error."""
    x, y = batch
    return F.mse_loss(model(x), y)


def cross_entropy(model: nn.Module, batch: Pair) -> Tensor:
    """Cross entropy of logits."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def next_token(model: nn.Module, batch: Tensor) -> Tensor:
    """Cross entropy of the next token."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
