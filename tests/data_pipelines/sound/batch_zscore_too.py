"""Z-score over the batch at hand, as a plain function."""

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(8)
    return torch.randn(7, 3, generator=g) * 3 + 5


def zscore(x):
    if not torch.isfinite(x).all():
        raise ValueError("non-finite batch")
    if x.shape[0] < 2:
        return torch.zeros_like(x)
    x = x.double()
    std = x.std(0, unbiased=False)
    return ((x - x.mean(0)) / std.clamp(min=1e-8)).float()


def build():
    return zscore
