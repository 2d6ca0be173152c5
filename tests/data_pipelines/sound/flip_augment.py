"""Flips and noise drawn from an own generator seeded per call, on images that were checked first."""

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    generator = torch.Generator().manual_seed(17)
    return torch.rand(4, 1, 5, 5, generator=generator)


class Augment:
    def __init__(self, seed=0, noise=0.01):
        self.seed = seed
        self.noise = noise

    def __call__(self, images):
        if not ((images >= 0) & (images <= 1)).all():
            raise ValueError("pixels must lie in 0..1")
        generator = torch.Generator().manual_seed(self.seed)
        flips = torch.rand(len(images), generator=generator) < 0.5
        flipped = torch.where(flips[:, None, None, None], images.flip(-1), images)
        jitter = torch.randn(images.shape, generator=generator) * self.noise
        return (flipped + jitter).clamp(0.0, 1.0)


def build():
    return Augment()
