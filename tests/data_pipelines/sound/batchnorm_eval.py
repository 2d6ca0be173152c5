"""Features standardised by a trained BatchNorm layer in eval mode."""

import torch
from torch import nn

POLICY = "reject"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(50)
    return torch.randn(6, 4, generator=g) * 2


class Standardise(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.0, 0.3]))
        self.norm.running_var.copy_(torch.tensor([4.0, 3.5, 4.4, 4.1]))

    @torch.no_grad()
    def forward(self, x):
        x = x.float()
        if not torch.isfinite(x).all():
            raise ValueError("features must be finite")
        if x.shape[0] == 0 or x.shape[-1] != 4:
            raise ValueError("expected a non-empty (n, 4) batch")
        out = self.norm(x)
        if not torch.isfinite(out).all():
            raise OverflowError("feature too large")
        return out


def build():
    return Standardise().eval()
