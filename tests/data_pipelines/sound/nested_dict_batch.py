"""A nested batch of dicts, lists and tuples checked leaf by leaf."""

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(61)
    return {
        "image": torch.rand(4, 1, 5, 5, generator=g),
        "meta": {"age": [31, 44, 27, 60], "boxes": (torch.rand(4, 4, generator=g), torch.rand(4, 2, generator=g))},
    }


def convert(node):
    if isinstance(node, dict):
        return {k: convert(v) for k, v in node.items()}
    if isinstance(node, tuple):
        return tuple(convert(v) for v in node)
    t = torch.as_tensor(node, dtype=torch.float32)
    if not torch.isfinite(t).all():
        raise ValueError("leaf is not finite")
    return t


def build():
    def collate(batch):
        try:
            return convert(batch)
        except RuntimeError as err:
            raise ValueError(f"leaf cannot become a float tensor: {err}") from err

    return collate
