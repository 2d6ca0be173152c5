"""A configured step as a callable dataclass."""

from dataclasses import dataclass, field

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    return torch.tensor([[1.0, 20.0], [2.0, 10.0], [1.5, 40.0], [0.5, 30.0]])


@dataclass
class Affine:
    shift: tuple = (1.0, 25.0)
    scale: tuple = (0.5, 10.0)
    seen: list = field(default_factory=list)

    def __call__(self, x):
        if x.dim() != 2 or x.shape[1] != 2:
            raise ValueError("expected two columns")
        x = x.to(torch.float32)
        if not torch.isfinite(x).all():
            raise ValueError("input is not finite")
        out = (x - torch.tensor(self.shift)) / torch.tensor(self.scale)
        if not torch.isfinite(out).all():
            raise OverflowError("scaled value too large")
        self.seen.append(len(x))
        return out


def build():
    return Affine()
