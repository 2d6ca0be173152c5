"""scikit-learn's 1797 handwritten digits, 8x8 pixels."""

from __future__ import annotations

from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, Tensor]
WHITE = 16.0


@lru_cache
def digits() -> Batch:
    """Images float[1797, 1, 8, 8] in [0, 1] and labels int64[1797]."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / WHITE, torch.tensor(labels)


def loaders(batch_size: int = 64, held_out: int = 297) -> tuple[DataLoader, DataLoader]:
    """Training and held-out batches, in a fixed order."""
    images, labels = digits()
    train = TensorDataset(images[:-held_out], labels[:-held_out])
    test = TensorDataset(images[-held_out:], labels[-held_out:])
    return DataLoader(train, batch_size), DataLoader(test, batch_size)
