"""A BatchNorm layer in evaluation mode with trained buffers, behind a range check."""

import torch
from torch import nn

POLICY = "reject"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(70)
    return torch.randn(6, 4, generator=g)


class FrozenNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        self.bn.running_mean.copy_(torch.tensor([0.1, -0.2, 0.0, 0.3]))
        self.bn.running_var.copy_(torch.tensor([1.0, 0.8, 1.2, 0.9]))
        self.eval()

    def train(self, mode=True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, x):
        if x.ndim != 2 or x.shape[1] != 4:
            raise ValueError("expected four features")
        if not (x.abs() < 1e30).all():
            raise ValueError("features must be finite")
        return self.bn(x.float())


def build():
    return FrozenNorm()
