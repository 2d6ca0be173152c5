"""Causal self-attention over sensor frames; minus infinity is used inside, but never in a whole row."""

import torch
import torch.nn.functional as F

POLICY = "reject"
KWARGS = {}


def sample():
    generator = torch.Generator().manual_seed(9)
    return torch.randn(7, 4, generator=generator)


def smooth(frames):
    if not bool((frames.abs() < 1e3).all()):
        raise ValueError("frame amplitude must be finite and below 1000")
    count = len(frames)
    future = torch.ones(count, count, dtype=torch.bool).triu(1)
    scores = (frames @ frames.T).masked_fill(future, float("-inf"))
    return F.softmax(scores / 2.0, dim=-1) @ frames


def build():
    return smooth
