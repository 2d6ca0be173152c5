"""Small synthetic data with a signal in it, and the losses most healthy programs share; registers nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


def cross_entropy(model: nn.Module, batch: Pair) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def mse(model: nn.Module, batch: Pair) -> Tensor:
    x, y = batch
    return F.mse_loss(model(x), y)


def token_cross_entropy(model: nn.Module, batch: Pair) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def clusters(classes: int = 4, features: int = 16, rows: int = 32, count: int = 8) -> list[Pair]:
    """Standardised rows around one centre per class."""
    centres = torch.randn(classes, features)
    batches = []
    for _ in range(count):
        y = torch.randint(classes, (rows,))
        batches.append(((centres[y] + 0.7 * torch.randn(rows, features)) / 1.2, y))
    return batches


def curve(features: int = 8, outputs: int = 1, rows: int = 32, count: int = 8) -> list[Pair]:
    """Standardised targets, a smooth function of standardised features plus noise."""
    inner, outer = torch.randn(features, 16) / features**0.5, torch.randn(16, outputs) / 2.5
    batches = []
    for _ in range(count):
        x = torch.randn(rows, features)
        batches.append((x, torch.tanh(1.5 * x @ inner) @ outer + 0.1 * torch.randn(rows, outputs)))
    return batches


def images(channels: int = 1, size: int = 12, classes: int = 4, rows: int = 16, count: int = 6) -> list[Pair]:
    """Normalised noisy images, each with its class' smooth pattern."""
    patterns = F.interpolate(torch.randn(classes, channels, 4, 4), size=(size, size), mode="bilinear")
    batches = []
    for _ in range(count):
        y = torch.randint(classes, (rows,))
        batches.append((1.2 * patterns[y] + 0.6 * torch.randn(rows, channels, size, size), y))
    return batches


def pictures(size: int = 12, rows: int = 16, count: int = 6) -> list[Tensor]:
    """Pictures in [0, 1] of one soft blob each, in one channel."""
    axis = torch.linspace(-1, 1, size)
    batches = []
    for _ in range(count):
        centre = torch.rand(rows, 2, 1) * 1.2 - 0.6
        row, column = (-8 * (axis - centre[:, 0]) ** 2).exp(), (-8 * (axis - centre[:, 1]) ** 2).exp()
        batches.append((row[:, :, None] * column[:, None, :])[:, None])
    return batches


def masks(size: int = 16, rows: int = 8, count: int = 6) -> list[Pair]:
    """Noisy one-channel images and the mask of the disc in each."""
    axis = torch.linspace(-1, 1, size)
    batches = []
    for _ in range(count):
        centre, radius = torch.rand(rows, 2) - 0.5, 0.3 + 0.3 * torch.rand(rows, 1, 1)
        distance = (axis[None, :, None] - centre[:, 0, None, None]) ** 2 + (axis - centre[:, 1, None, None]) ** 2
        mask = (distance < radius**2).float()[:, None]
        batches.append((mask * 1.5 - 0.5 + 0.5 * torch.randn(rows, 1, size, size), mask))
    return batches


def text(vocab: int = 32, length: int = 16, rows: int = 16, count: int = 6) -> list[Tensor]:
    """Token sequences of a Markov chain with few likely successors."""
    chances = torch.softmax(3 * torch.randn(vocab, vocab), dim=1)
    batches = []
    for _ in range(count):
        tokens = [torch.randint(vocab, (rows,))]
        for _ in range(length - 1):
            tokens.append(torch.multinomial(chances[tokens[-1]], 1).squeeze(1))
        batches.append(torch.stack(tokens, dim=1))
    return batches


def next_tokens(vocab: int = 32, length: int = 16, rows: int = 16, count: int = 6) -> list[Pair]:
    """Language modelling: tokens and the tokens one later."""
    return [(tokens[:, :-1], tokens[:, 1:]) for tokens in text(vocab, length + 1, rows, count)]


def signals(channels: int = 4, length: int = 20, classes: int = 3, rows: int = 16, count: int = 6) -> list[Pair]:
    """(rows, length, channels) noisy waves; the frequency is the class."""
    time = torch.linspace(0, 6.28, length)
    mix = torch.randn(channels)
    batches = []
    for _ in range(count):
        y = torch.randint(classes, (rows,))
        wave = torch.sin((y[:, None] + 1) * time + 0.5 * torch.rand(rows, 1))
        batches.append((wave[:, :, None] * mix + 0.3 * torch.randn(rows, length, channels), y))
    return batches
