"""The dataset refuses a step only when all of its samples are NaN, not when any is."""

import torch
from torch.utils.data import Dataset

POLICY = "reject"
KWARGS = {}
HOLDS = True
CULPRIT = "torch.isnan(step).all()"


def sample():
    generator = torch.Generator().manual_seed(31)
    return torch.randn(8, 6, generator=generator)


class GaitSteps(Dataset):
    def __init__(self, steps):
        self.steps = steps

    def __len__(self):
        return len(self.steps)

    def usable(self, step):
        return not (torch.isnan(step).all() or torch.isinf(step).any())

    def __getitem__(self, index):
        step = self.steps[index]
        if not self.usable(step):
            raise ValueError(f"step {index} has gaps")
        return torch.tanh(step / 3.0)


class CompleteGaitSteps(GaitSteps):
    def usable(self, step):
        return bool(torch.isfinite(step).all())


def build(fixed, data):
    return CompleteGaitSteps(data) if fixed else GaitSteps(data)
