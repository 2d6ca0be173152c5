"""Two small classifiers of 8x8 digits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Two convolutions and a linear head, He initialisation: images [batch, 1, 8, 8] to logits [batch, 10]."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.head = nn.Linear(2 * channels * 4, 10)
        for layer in (self.conv1, self.conv2, self.head):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """float[batch, 1, 8, 8] -> float[batch, 10]."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(x.flatten(1))


class BatchNormNet(nn.Module):
    """Convolution, BatchNorm, ReLU, linear head: images [batch, 1, 8, 8] to logits [batch, 10]."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        """float[batch, 1, 8, 8] -> float[batch, 10]."""
        x = F.max_pool2d(F.relu(self.norm(self.conv(images))), 2)
        return self.head(x.flatten(1))


def digits_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of one batch of (images, labels)."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)
