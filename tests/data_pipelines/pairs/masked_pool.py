"""The mean over unmasked steps divides by the number of steps, 0 when a mask is all False."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "/ mask.sum("


def sample():
    g = torch.Generator().manual_seed(2)
    lengths = torch.tensor([5, 3, 4, 1])
    return {
        "steps": torch.randn(4, 5, 3, generator=g),
        "mask": torch.arange(5)[None, :] < lengths[:, None],
    }


def unpack(batch):
    steps, mask = batch["steps"], batch["mask"]
    if mask.dtype != torch.bool:
        raise TypeError("mask must be boolean")
    if steps.shape[:2] != mask.shape:
        raise ValueError("steps and mask do not match")
    if not torch.isfinite(steps).all():
        raise ValueError("steps contain NaN or Inf")
    return steps.double(), mask.unsqueeze(-1)


def mean_pool(batch):
    steps, mask = unpack(batch)
    return (steps * mask).sum(1) / mask.sum(1)


def mean_pool_clamped(batch):
    steps, mask = unpack(batch)
    return (steps * mask).sum(1) / mask.sum(1).clamp(min=1)


def build(fixed: bool):
    return mean_pool_clamped if fixed else mean_pool
