"""Running mean and variance (Welford) that are only committed after all checks."""

import math

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(25)
    return torch.randn(6, 3, generator=g) + 2


class Welford:
    def __init__(self, features=3):
        self.features = features
        self.n = 0
        self.mean = torch.zeros(features, dtype=torch.float64)
        self.m2 = torch.zeros(features, dtype=torch.float64)

    def __call__(self, batch):
        x = torch.as_tensor(batch, dtype=torch.float32).double()
        if x.dim() != 2 or x.shape[0] == 0 or x.shape[1] != self.features:
            raise ValueError(f"bad batch shape {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError("batch is not finite")
        n = self.n + x.shape[0]
        delta = x.mean(0) - self.mean
        mean = self.mean + delta * (x.shape[0] / n)
        m2 = self.m2 + ((x - x.mean(0)) ** 2).sum(0) + delta**2 * (self.n * x.shape[0] / n)
        if not (torch.isfinite(m2).all() and math.isfinite(n)):
            raise OverflowError("running variance overflowed")
        self.n, self.mean, self.m2 = n, mean, m2
        return ((x - mean) / (m2 / n).sqrt().clamp(min=1e-6)).float()


def build():
    return Welford()
