"""nn.Module that normalises images and refuses anything outside 0..1."""

import torch
from torch import nn

POLICY = "reject"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(18)
    return torch.rand(4, 3, 6, 6, generator=g)


class Normalise(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.48, 0.46, 0.41]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.23, 0.22, 0.23]).view(3, 1, 1))

    def forward(self, img):
        if img.ndim != 4 or img.shape[1] != 3:
            raise ValueError("expected N x 3 x H x W")
        inside = (img >= 0) & (img <= 1)
        if not bool(inside.all()):
            raise ValueError("pixels must lie in 0..1")
        return (img.float() - self.mean) / self.std


def build():
    return Normalise()
