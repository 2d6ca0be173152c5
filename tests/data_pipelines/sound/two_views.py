"""Two randomly perturbed views of the same batch for contrastive training."""

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(28)
    return torch.randn(6, 4, generator=g)


def view(x, generator):
    keep = torch.rand(x.shape, generator=generator) > 0.2
    return x * keep + 0.01 * torch.randn(x.shape, generator=generator)


def make_two_views(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def two_views(x):
        if not torch.isfinite(x).all():
            raise ValueError("input must be finite")
        return view(x, generator), view(x, generator)

    return two_views


def build():
    return make_two_views()
