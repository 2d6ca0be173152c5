"""A loader over tennis rallies; the collate function checks, pads and averages with a guarded count."""

import math

import torch
from torch.utils.data import DataLoader

POLICY = "reject"
KWARGS = {}
HOLDS = True


def sample():
    return [
        {"speeds": [41.0, 38.5, 44.2], "won": 1},
        {"speeds": [52.3], "won": 0},
        {"speeds": [33.0, 35.9, 36.4, 40.1], "won": 1},
        {"speeds": [47.7, 45.0], "won": 0},
    ]


def rally(item):
    speeds, won = item["speeds"], item["won"]
    if not all(math.isfinite(v) and abs(v) < 1e3 for v in speeds):
        raise ValueError("speeds: not finite or too large")
    if not isinstance(won, int) or won not in (0, 1):
        raise ValueError("won: 0 or 1 expected")
    return speeds, won


def collate(items):
    pairs = [rally(item) for item in items]
    width = max(1, max(len(speeds) for speeds, _ in pairs))
    table = torch.tensor([list(speeds) + [0.0] * (width - len(speeds)) for speeds, _ in pairs])
    count = torch.tensor([float(len(speeds)) for speeds, _ in pairs]).clamp_min(1.0)
    return {"mean": table.sum(dim=1) / count, "won": torch.tensor([won for _, won in pairs])}


def build(data):
    return DataLoader(data, batch_size=2, collate_fn=collate)
