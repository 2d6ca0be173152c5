"""The collate function pads the sequences without looking at their values, so NaN reaches the batch."""

import torch
from torch.utils.data import DataLoader

POLICY = "reject"
KWARGS = {}
CULPRIT = 'torch.tensor(item["seq"]'


def sample():
    return [
        {"seq": [0.5, 1.25, -0.75], "label": 0},
        {"seq": [2.0], "label": 1},
        {"seq": [0.1, 0.2, 0.3, 0.4], "label": 1},
        {"seq": [-1.5, 3.0], "label": 0},
        {"seq": [0.9, 0.8, 0.7], "label": 2},
    ]


def pad(seqs, labels):
    for label in labels:
        if type(label) is not int or not 0 <= label < 1000:
            raise ValueError(f"bad class label {label!r}")
    width = max(len(s) for s in seqs)
    out = torch.zeros(len(seqs), width)
    for row, s in enumerate(seqs):
        out[row, : len(s)] = s
    lengths = torch.tensor([len(s) for s in seqs])
    return out, lengths, torch.tensor(labels)


def collate(items):
    seqs = [torch.tensor(item["seq"], dtype=torch.float32) for item in items]
    return pad(seqs, [item["label"] for item in items])


def collate_checked(items):
    seqs = [torch.tensor(item["seq"], dtype=torch.float32) for item in items]
    for i, s in enumerate(seqs):
        if not torch.isfinite(s).all():
            raise ValueError(f"sequence {i} of the batch is not finite")
    return pad(seqs, [item["label"] for item in items])


def build(fixed: bool):
    collate_fn = collate_checked if fixed else collate
    return lambda data: DataLoader(data, batch_size=3, num_workers=2, collate_fn=collate_fn)
