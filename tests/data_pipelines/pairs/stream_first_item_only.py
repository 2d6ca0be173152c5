"""The stream validates its first record only and yields every later one unchecked."""

import torch
from torch.utils.data import DataLoader, IterableDataset

POLICY = "reject"
KWARGS = {}
CULPRIT = "if not checked"


def sample():
    g = torch.Generator().manual_seed(40)
    return torch.rand(8, 3, generator=g)


class Stream(IterableDataset):
    def __init__(self, rows, every):
        self.rows = rows
        self.every = every

    def validate(self, row):
        if not torch.isfinite(row).all():
            raise ValueError("record holds NaN or Inf")

    def __iter__(self):
        checked = False
        for row in self.rows:
            if self.every:
                self.validate(row)
            elif not checked:
                self.validate(row)
                checked = True
            yield row / 2


def build(fixed):
    def loader(rows):
        return DataLoader(Stream(rows, every=fixed), batch_size=4)

    return loader
