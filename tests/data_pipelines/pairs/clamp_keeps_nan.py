"""Readings are sanitised with clamp alone, which bounds Inf but hands NaN on."""

import torch

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "x.clamp(-LIMIT, LIMIT)"

LIMIT = 50.0


def sample():
    g = torch.Generator().manual_seed(9)
    return {"imu": torch.randn(6, 4, generator=g), "gain": torch.rand(6, generator=g) + 0.5}


def build(fixed):
    def bound(x):
        if fixed:
            x = torch.where(torch.isnan(x), torch.zeros_like(x), x)
        return x.clamp(-LIMIT, LIMIT)

    def clean(batch):
        if len(batch["imu"]) != len(batch["gain"]):
            raise ValueError("imu and gain differ in length")
        imu = bound(batch["imu"].float())
        gain = bound(batch["gain"].float())
        return {"imu": imu * gain[:, None], "gain": gain}

    return clean
