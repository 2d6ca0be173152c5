"""Dataset that opens its index on first access, as is done for files in workers."""

import numpy as np
import torch
from torch.utils.data import Dataset

POLICY = "reject"
KWARGS = {}
HOLDS = True


def sample():
    rng = np.random.default_rng(33)
    return rng.normal(size=(8, 3))


class LazyRows(Dataset):
    def __init__(self, table):
        self.table = table
        self._order = None

    def _open(self):
        if self._order is None or len(self._order) != len(self.table):
            self._order = np.arange(len(self.table))[::-1]
        return self._order

    def __len__(self):
        return len(self.table)

    def __getitem__(self, i):
        if not 0 <= i < len(self.table):
            raise IndexError(i)
        row = np.asarray(self.table[self._open()[i]], dtype=np.float32)
        if not np.isfinite(row).all():
            raise ValueError(f"row {self._order[i]} is not finite")
        return torch.from_numpy(row.copy())


def build(data):
    return LazyRows(data)
