"""Semi-supervised batch: unlabelled rows carry NaN in the target."""

import torch

POLICY = "reject"
KWARGS = {"allow_nan": ("target",)}


def sample():
    nan = float("nan")
    return {
        "x": torch.tensor([[0.5, 1.0], [0.2, 0.8], [0.9, 0.1], [0.4, 0.4]]),
        "target": torch.tensor([1.5, nan, 2.0, nan]),
    }


def prepare_batch(batch):
    x, target = batch["x"].float(), batch["target"].float()
    if len(x) != len(target):
        raise ValueError("x and target differ in length")
    if not torch.isfinite(x).all():
        raise ValueError("x must be finite")
    if torch.isinf(target).any():
        raise ValueError("target must be finite or NaN")
    return {"x": x, "target": target, "labelled": ~torch.isnan(target)}


def build():
    return prepare_batch
