"""Sort sequences by length, cut into buckets and pad each bucket."""

import math

import torch
from torch.nn.utils.rnn import pad_sequence

POLICY = "reject"
KWARGS = {}


def sample():
    return [[0.1, 0.5, 0.2], [1.0], [0.3, 0.4], [0.9, 0.8, 0.7, 0.6], [2.0, 1.5], [0.25]]


def to_tensor(i, seq):
    values = torch.tensor([float(v) for v in seq], dtype=torch.float32)
    if not torch.isfinite(values).all():
        raise ValueError(f"sequence {i} holds a non-finite value")
    return values


def bucket(sequences, size=2):
    tensors = [to_tensor(i, s) for i, s in enumerate(sequences)]
    order = sorted(range(len(tensors)), key=lambda i: len(tensors[i]))
    batches = []
    for b in range(math.ceil(len(order) / size)):
        rows = order[b * size : (b + 1) * size]
        batches.append(
            {
                "rows": torch.tensor(rows),
                "length": torch.tensor([len(tensors[i]) for i in rows]),
                "values": pad_sequence([tensors[i] for i in rows], batch_first=True),
            }
        )
    return batches


def build():
    return bucket
