"""The values are checked in float32; everything above 65504 becomes Inf in half precision."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "x.half()"


def sample():
    g = torch.Generator().manual_seed(31)
    return {"feat": torch.randn(6, 3, generator=g) * 20, "idx": torch.arange(6)}


def ids(batch):
    idx = batch["idx"]
    if idx.is_floating_point():
        raise TypeError("idx must be integer")
    return idx


def pack(batch):
    x = torch.as_tensor(batch["feat"], dtype=torch.float32)
    if not torch.isfinite(x).all():
        raise ValueError("feat contains NaN or Inf")
    return {"feat": x.half(), "idx": ids(batch)}


def pack_checked(batch):
    x = torch.as_tensor(batch["feat"], dtype=torch.float32).half()
    if not torch.isfinite(x).all():
        raise ValueError("feat contains NaN, Inf or values beyond float16")
    return {"feat": x, "idx": ids(batch)}


def build(fixed: bool):
    return pack_checked if fixed else pack
