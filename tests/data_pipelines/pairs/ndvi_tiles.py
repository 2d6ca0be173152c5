"""The vegetation index divides by the sum of both bands, which is zero where a tile is black."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "(nir - red) / (nir + red)"


def sample():
    generator = torch.Generator().manual_seed(11)
    return torch.rand(4, 2, 3, 3, generator=generator) * 0.8 + 0.1


def reflectance(func):
    def wrapped(tiles):
        if tiles.ndim != 4 or tiles.shape[1] != 2:
            raise ValueError("expected tiles x (red, nir) x height x width")
        if not ((tiles >= 0) & (tiles <= 1)).all():
            raise ValueError("reflectance outside 0..1")
        red, nir = tiles.unbind(dim=1)
        return func(red, nir)

    return wrapped


@reflectance
def ndvi_v1(red, nir):
    return (nir - red) / (nir + red)


@reflectance
def ndvi_v2(red, nir):
    total = (nir + red).clamp_min(1e-6)
    return (nir - red) / total


def build(fixed):
    return ndvi_v2 if fixed else ndvi_v1
