"""A negative pixel raised to a fractional gamma is NaN."""

import torch
from torch import nn

POLICY = "reject"
KWARGS = {}
CULPRIT = "images**self.gamma"


def sample():
    g = torch.Generator().manual_seed(23)
    return torch.rand(4, 1, 6, 6, generator=g)


class Gamma(nn.Module):
    def __init__(self, gamma=0.45):
        super().__init__()
        self.gamma = gamma

    def validate(self, images):
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError("expected float images (n, c, h, w)")
        if not torch.isfinite(images).all():
            raise ValueError("image has NaN or Inf pixels")

    def forward(self, images):
        self.validate(images)
        return images**self.gamma


class ClampedGamma(Gamma):
    def forward(self, images):
        self.validate(images)
        return images.clamp(min=0.0) ** self.gamma


def build(fixed: bool):
    return (ClampedGamma() if fixed else Gamma()).eval()
