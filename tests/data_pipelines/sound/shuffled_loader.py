"""A DataLoader with shuffle and drop_last over a dataset that checks each row it hands out."""

import torch
from torch.utils.data import DataLoader, Dataset

POLICY = "reject"
KWARGS = {}
HOLDS = True


def sample():
    g = torch.Generator().manual_seed(3)
    return torch.rand(10, 3, generator=g)


class Rows(Dataset):
    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table)

    def __getitem__(self, i):
        # the whole table is looked at, as shuffling with drop_last may skip any row
        if not torch.isfinite(self.table).all():
            raise ValueError("table is not finite")
        return self.table[i] * 0.5


def build(data):
    return DataLoader(Rows(data), batch_size=4, shuffle=True, drop_last=True)
