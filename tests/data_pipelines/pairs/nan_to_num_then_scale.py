"""nan_to_num puts the largest float in place of Inf, and the following multiplication overflows again."""

import torch

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "torch.nan_to_num(x)"


def sample():
    g = torch.Generator().manual_seed(17)
    return torch.rand(5, 3, generator=g)


class Rescale(torch.nn.Module):
    def __init__(self, bounded):
        super().__init__()
        self.bounded = bounded
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.6]))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.1]))

    def forward(self, x):
        if self.bounded:
            x = torch.nan_to_num(x, nan=0.5, posinf=10.0, neginf=-10.0).clamp(-10.0, 10.0)
        else:
            x = torch.nan_to_num(x)
        return ((x - self.mean) / self.std).to(torch.float32)


def build(fixed):
    return Rescale(bounded=fixed)
