"""Activations are halved after the finite check; anything over 65504 turns into inf."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "x.half()"


def sample():
    g = torch.Generator().manual_seed(5)
    return torch.randn(5, 4, generator=g) * 50


class ToHalf(torch.nn.Module):
    def __init__(self, check_after):
        super().__init__()
        self.check_after = check_after

    def forward(self, x):
        if not torch.isfinite(x).all():
            raise ValueError("non-finite input")
        y = x.half()
        if self.check_after and not torch.isfinite(y).all():
            raise OverflowError("value too large for float16")
        return y


def build(fixed):
    return ToHalf(check_after=fixed)
