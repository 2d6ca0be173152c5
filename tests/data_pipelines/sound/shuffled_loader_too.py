"""DataLoader that shuffles with its own generator."""

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

POLICY = "reject"
KWARGS = {}


def sample():
    rng = np.random.default_rng(70)
    return {"x": rng.normal(size=(8, 3)), "y": rng.integers(0, 3, size=8)}


def make_loader(data):
    x, y = np.asarray(data["x"], dtype=np.float32), np.asarray(data["y"])
    if not np.isfinite(x).all():
        raise ValueError("x must be finite")
    if y.dtype.kind not in "iu" or ((y < 0) | (y > 2)).any():
        raise ValueError("y must be a class 0, 1 or 2")
    if len(x) == 0 or len(x) != len(y):
        raise ValueError("x and y must be non-empty and of equal length")
    dataset = TensorDataset(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))
    generator = torch.Generator().manual_seed(1)
    return DataLoader(dataset, batch_size=4, shuffle=True, generator=generator)


def build():
    return make_loader
