"""The dataset checks the features of a row but not its target."""

import numpy as np
import torch
from torch.utils.data import Dataset

POLICY = "reject"
KWARGS = {}
HOLDS = True
CULPRIT = 'torch.tensor(self.data["y"][i]'


def sample():
    rng = np.random.default_rng(6)
    return {"x": rng.normal(size=(7, 4)), "y": rng.normal(10, 2, size=7)}


class HouseDataset(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        if len(self.data["x"]) != len(self.data["y"]):
            raise ValueError("x and y differ in length")
        return len(self.data["x"])

    def features(self, i):
        x = torch.tensor(np.asarray(self.data["x"][i], dtype=np.float64), dtype=torch.float32)
        if not torch.isfinite(x).all():
            raise ValueError(f"row {i}: features are not finite")
        return x

    def __getitem__(self, i):
        x = self.features(i)
        y = torch.tensor(self.data["y"][i], dtype=torch.float32)
        return x, y


class CheckedHouseDataset(HouseDataset):
    def __getitem__(self, i):
        x = self.features(i)
        y = torch.tensor(float(self.data["y"][i]), dtype=torch.float32)
        if not torch.isfinite(y):
            raise ValueError(f"row {i}: target is not finite")
        return x, y


def build(fixed: bool, data):
    return CheckedHouseDataset(data) if fixed else HouseDataset(data)
