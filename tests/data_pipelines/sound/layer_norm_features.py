"""Row-wise layer normalisation guarded by eps, in double precision."""

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 5, generator=generator)


class InvalidFeatures(ValueError):
    pass


class RowNorm(torch.nn.Module):
    def __init__(self, eps=1e-5):
        super().__init__()
        self.eps = eps

    def forward(self, x):
        if not torch.isfinite(x).all():
            raise InvalidFeatures("features must be finite")
        wide = x.double()
        centred = wide - wide.mean(dim=1, keepdim=True)
        return (centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + self.eps)).float()


def build():
    return RowNorm()
