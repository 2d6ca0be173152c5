"""The dataset checks its features only; the collate function passes a NaN target on."""

import math

import torch
from torch.utils.data import DataLoader, Dataset

POLICY = "reject"
KWARGS = {}
HOLDS = True
CULPRIT = 'torch.tensor([r["y"]'


def sample():
    return [{"x": [0.1 * i, 1.0 - 0.2 * i, float(i)], "y": 2.0 * i + 1.0} for i in range(6)]


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = self.rows[i]
        if not all(math.isfinite(v) and abs(v) < 1e30 for v in row["x"]):
            raise ValueError(f"row {i}: bad feature")
        return row


def collate(batch):
    x = torch.tensor([r["x"] for r in batch], dtype=torch.float32)
    y = torch.tensor([r["y"] for r in batch], dtype=torch.float32)
    return x, y


def checked_collate(batch):
    x, target = collate(batch)
    if not torch.isfinite(target).all():
        raise ValueError("bad target")
    return x, target


def build(fixed, data):
    return DataLoader(Rows(data), batch_size=3, collate_fn=checked_collate if fixed else collate)
