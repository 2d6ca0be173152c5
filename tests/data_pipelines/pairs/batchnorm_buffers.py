"""The batch runs through BatchNorm in training mode before it is checked, which writes NaN into its buffers."""

import torch
from torch import nn

POLICY = "reject"
KWARGS = {}
CULPRIT = "self.bn(x)  # statistics"


def sample():
    g = torch.Generator().manual_seed(2)
    return torch.randn(8, 3, generator=g) * 2 + 1


class OnlineNorm(nn.Module):
    def __init__(self, early_check):
        super().__init__()
        self.early_check = early_check
        self.bn = nn.BatchNorm1d(3, affine=False)

    def forward(self, x):
        if x.ndim != 2 or x.shape[1] != 3 or x.shape[0] < 2:
            raise ValueError("need at least two rows of three features")
        x = x.float()
        if self.early_check and not (x.abs() < 50).all():
            raise ValueError("input out of range")
        self.bn.train()
        with torch.no_grad():
            self.bn(x)  # statistics
        self.bn.eval()
        if not (x.abs() < 50).all():
            raise ValueError("input out of range")
        return self.bn(x)


def build(fixed):
    return OnlineNorm(early_check=fixed)
