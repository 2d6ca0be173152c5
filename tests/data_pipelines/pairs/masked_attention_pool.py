"""The softmax over a session whose mask is all False is taken of minus infinities only and gives NaN."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "weights = torch.softmax(hidden"

DIM = 4


def sample():
    generator = torch.Generator().manual_seed(2)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    return {"clicks": torch.randn(4, 4, DIM, generator=generator), "mask": mask}


def scores(clicks, mask):
    if len(clicks) != len(mask):
        raise ValueError("one mask per session expected")
    if not (clicks.abs() <= 1e6).all():
        raise ValueError("click embedding is not usable")
    query = torch.linspace(-1.0, 1.0, DIM)
    return (clicks @ query).masked_fill(~mask, float("-inf"))


def pool_v1(batch):
    clicks, mask = batch["clicks"], batch["mask"].bool()
    hidden = scores(clicks, mask)
    weights = torch.softmax(hidden, dim=1)
    return torch.einsum("nt,ntd->nd", weights, clicks)


def pool_v2(batch):
    clicks, mask = batch["clicks"], batch["mask"].bool()
    if not mask.any(dim=1).all():
        raise ValueError("session without a single click")
    weights = torch.softmax(scores(clicks, mask), dim=1)
    return torch.einsum("nt,ntd->nd", weights, clicks)


def build(fixed):
    return pool_v2 if fixed else pool_v1
