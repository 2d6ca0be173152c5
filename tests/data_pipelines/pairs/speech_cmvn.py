"""The variance is formed as E[x^2] - E[x]^2 in single precision and turns negative for a constant coefficient."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "(x * x).mean(dim=0)"


def sample():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(10, 5, generator=generator) * 2.0 + torch.tensor([20.0, 4.0, -3.0, 1.5, 0.5])


class CepstralNorm(torch.nn.Module):
    eps = 1e-6

    def moments(self, x):
        mean = x.mean(dim=0)
        var = (x * x).mean(dim=0) - mean**2
        return mean, var

    def forward(self, frames):
        if frames.ndim != 2 or len(frames) == 0:
            raise ValueError("expected frames x coefficients")
        if not torch.isfinite(frames).all():
            raise ValueError("non-finite cepstral coefficient")
        mean, var = self.moments(frames)
        return ((frames - mean) / torch.sqrt(var + self.eps)).to(torch.float32)


class TwoPassCepstralNorm(CepstralNorm):
    def moments(self, x):
        wide = x.double()
        mean = wide.mean(dim=0)
        return mean, (wide - mean).square().mean(dim=0)


def build(fixed):
    return TwoPassCepstralNorm() if fixed else CepstralNorm()
