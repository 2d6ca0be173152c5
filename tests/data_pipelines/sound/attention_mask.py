"""Masked attention pooling; -inf only exists inside and rows without any step give zeros."""

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(60)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    return {"value": torch.randn(4, 4, 3, generator=g), "mask": mask}


def pool(batch):
    value, mask = batch["value"], batch["mask"]
    if mask.dtype != torch.bool or value.shape[:2] != mask.shape:
        raise ValueError("mask does not fit the values")
    if not torch.isfinite(value).all():
        raise ValueError("value must be finite")
    value = value.double()
    score = value.sum(-1).masked_fill(~mask, float("-inf"))
    weight = torch.softmax(score, dim=1).nan_to_num(0.0)
    return (weight.unsqueeze(-1) * value).sum(1)


def build():
    return pool
