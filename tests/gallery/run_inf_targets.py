"""Log-count targets prepared in numpy, log(0) = -inf for one row: the inputs are fine, the loss gets the infinity."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

OP = ("data", "target", "input", "batch", "huber_loss", "from_numpy")
PHASE = "data"
MODULE = None
STEP = 2
CAUSE = ("target", "input", "data", "batch")


def load_counts() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    features = rng.uniform(-1, 1, size=(12, 3)).astype(np.float32)
    counts = np.array([3, 7, 1, 2, 5, 0, 4, 9, 2, 2, 6, 1], dtype=np.float32)
    return features, counts


def fit(features: np.ndarray, targets: np.ndarray) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    losses = []
    for start in range(0, len(features), 4):
        output = model(torch.from_numpy(features[start : start + 4]))
        loss = F.huber_loss(output, torch.from_numpy(targets[start : start + 4]))  # culprit
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def test_broken() -> None:
    features, counts = load_counts()
    with np.errstate(divide="ignore"):
        targets = np.log(counts)
    fit(features, targets)


def test_healthy() -> None:
    features, counts = load_counts()
    model, losses = fit(features, np.log1p(counts))
    assert np.isfinite(losses).all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
