"""A dataset that checks and scales each pollen record when it is asked for."""

import numpy as np
import torch
from torch.utils.data import Dataset

POLICY = "reject"
KWARGS = {}
HOLDS = True


def sample():
    rng = np.random.default_rng(6)
    return rng.gamma(2.0, 15.0, size=(7, 4)).astype(np.float32)


class PollenDays(Dataset):
    def __init__(self, counts):
        self.counts = counts

    def __len__(self):
        return len(self.counts)

    def __getitem__(self, day):
        record = np.array(self.counts[day], dtype=np.float64)
        if np.isfinite(record).sum() != record.size:
            raise ValueError(f"day {day}: incomplete record")
        share = np.abs(record) / (np.abs(record).sum() + 1.0)
        return torch.from_numpy(share.astype(np.float32))


def build(data):
    return PollenDays(data)
