"""A Dataset over recorded signals, one of which is stored as NaN; the shuffled loader serves it at some step."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

OP = ("data", "input", "batch", "conv1d", "convolution")
PHASE = "data"
MODULE = None
STEP = 6
CAUSE = ("input", "data", "batch")


class Recordings(Dataset):
    def __init__(self, corrupt: set[int]) -> None:
        rng = np.random.default_rng(21)
        self.signals = rng.normal(size=(16, 1, 10)).astype(np.float32)
        for i in corrupt:
            self.signals[i] = np.nan
        self.labels = rng.integers(0, 2, size=16)

    def __len__(self) -> int:
        return len(self.signals)

    def __getitem__(self, i: int) -> dict:
        return {"id": i, "signal": self.signals[i], "label": self.labels[i]}


class LitModule:
    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))

    def training_step(self, batch: dict) -> torch.Tensor:
        logits = self.net(batch["signal"])  # culprit
        return nn.functional.cross_entropy(logits, batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=1e-2)


def fit(dataset: Dataset, epochs: int = 2) -> tuple[LitModule, list[float]]:
    torch.manual_seed(0)
    lit = LitModule()
    optimizer = lit.configure_optimizers()
    loader = DataLoader(dataset, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(4))
    losses = []
    for _ in range(epochs):
        for batch in loader:
            loss = lit.training_step(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return lit, losses


def test_broken() -> None:
    fit(Recordings(corrupt={13}))


def test_healthy() -> None:
    lit, losses = fit(Recordings(corrupt=set()))
    assert np.isfinite(losses).all()
    assert all(p.isfinite().all() for p in lit.net.parameters())
