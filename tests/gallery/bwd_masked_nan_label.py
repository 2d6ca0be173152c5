"""Missing regression labels are NaN and the loss is masked by where only after it has been computed."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.data import DataLoader, Dataset

OP = ("mse_loss",)
PHASE = "backward"
MODULE = None
STEP = 2
CAUSE = ("mask", "where", "label", "target", "missing")


class Assays(Dataset):
    """Molecule fingerprints with three assay read-outs, not all of them measured."""

    def __init__(self):
        rng = np.random.default_rng(17)
        self.x = rng.standard_normal((12, 5)).astype(np.float32)
        self.y = self.x[:, :3] * 0.5
        self.y[6, 1] = np.nan

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.y[i]}


def masked_mse(pred, y):
    known = ~torch.isnan(y)
    per_label = F.mse_loss(pred, y, reduction="none")  # culprit
    return torch.where(known, per_label, torch.zeros_like(per_label)).sum() / known.sum()


def indexed_mse(pred, y):
    known = ~torch.isnan(y)
    return F.mse_loss(pred[known], y[known])


def train(loss_fn, callbacks=()):
    torch.manual_seed(17)
    net = nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(), nn.Linear(8, 3))
    opt = torch.optim.Adam(net.parameters(), lr=1e-2)
    for batch in DataLoader(Assays(), batch_size=4):
        opt.zero_grad()
        loss = loss_fn(net(batch["x"]), batch["y"])
        loss.backward()
        opt.step()
        for callback in callbacks:
            callback(net, loss)


def assert_finite(net, loss):
    assert loss.isfinite()
    for p in net.parameters():
        assert p.isfinite().all()
        assert p.grad.isfinite().all()


def test_broken() -> None:
    train(masked_mse)


def test_healthy() -> None:
    train(indexed_mse, callbacks=[assert_finite])
