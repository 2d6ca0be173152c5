"""The batch mean over an episode without frames divides zero by zero."""

import torch
from torch.utils.data import DataLoader

POLICY = "reject"
KWARGS = {}
HOLDS = True
CULPRIT = "total / lengths"


def sample():
    return [[0.3, 0.8, 0.1], [0.5, 0.2], [0.9, 0.4, 0.7, 0.6], [0.1, 0.3, 0.2], [0.6, 0.6]]


def pad(episodes):
    width = max(len(e) for e in episodes)
    padded = torch.zeros(len(episodes), width, dtype=torch.float64)
    for i, episode in enumerate(episodes):
        values = torch.tensor(episode, dtype=torch.float64)
        if not torch.isfinite(values).all():
            raise ValueError(f"episode {i}: loudness is not finite")
        padded[i, : len(values)] = values
    return padded, torch.tensor([len(e) for e in episodes], dtype=torch.float64)


def loudness_v1(episodes):
    padded, lengths = pad(episodes)
    total = padded.sum(dim=1)
    return total / lengths


def loudness_v2(episodes):
    padded, lengths = pad(episodes)
    return padded.sum(dim=1) / torch.clamp(lengths, min=1.0)


def build(fixed, data):
    return DataLoader(data, batch_size=2, collate_fn=loudness_v2 if fixed else loudness_v1)
