"""A table with one NaN cell, which the third mini-batch feeds to the model."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

OP = ("data", "input", "batch", "linear", "addmm")
PHASE = "data"
MODULE = None
STEP = 3
CAUSE = ("input", "data", "batch")


def table(with_gap: bool) -> TensorDataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 5)).astype(np.float32)
    y = x[:, [0]] - 2 * x[:, [3]]
    if with_gap:
        x[9, 2] = np.nan
    return TensorDataset(torch.from_numpy(x), torch.from_numpy(y))


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x):
        return self.body(x)


def train_one_epoch(model, loader, optimizer, loss_fn):
    total = 0.0
    for xb, yb in loader:
        optimizer.zero_grad()
        prediction = model(xb)  # culprit
        loss = loss_fn(prediction, yb)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(xb)
    return total / len(loader.dataset)


def test_broken() -> None:
    torch.manual_seed(0)
    model = Regressor()
    loader = DataLoader(table(with_gap=True), batch_size=4)
    train_one_epoch(model, loader, torch.optim.Adam(model.parameters()), nn.MSELoss())


def test_healthy() -> None:
    torch.manual_seed(0)
    model = Regressor()
    loader = DataLoader(table(with_gap=False), batch_size=4)
    mean_loss = train_one_epoch(model, loader, torch.optim.Adam(model.parameters()), nn.MSELoss())
    assert np.isfinite(mean_loss)
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
