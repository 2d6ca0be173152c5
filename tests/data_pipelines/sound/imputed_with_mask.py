"""Gene expression returned as a pair: values with gaps set to zero, and the mask of observed values."""

import torch

POLICY = "sanitize"
KWARGS = {}


def sample():
    generator = torch.Generator().manual_seed(23)
    return torch.rand(5, 6, generator=generator) * 9.0 + 0.5


@torch.no_grad()
def observe(expression):
    seen = torch.isfinite(expression)
    values = torch.where(seen, expression, torch.zeros_like(expression)).clamp(-1e4, 1e4)
    return torch.sign(values) * torch.log1p(values.abs()), seen.float()


def build():
    return observe
