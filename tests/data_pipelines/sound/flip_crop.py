"""Random flip and crop of images with a torch.Generator held by the transform."""

import torch
from torch import nn

POLICY = "reject"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(4)
    return torch.rand(6, 3, 8, 8, generator=g)


class FlipCrop(nn.Module):
    def __init__(self, size=6, seed=0):
        super().__init__()
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, images):
        if images.dim() != 4 or min(images.shape[-2:]) < self.size:
            raise ValueError(f"bad image shape {tuple(images.shape)}")
        if not images.is_floating_point() or not torch.isfinite(images).all():
            raise ValueError("images must be finite floats")
        out = []
        for image in images:
            top, left = torch.randint(0, 8 - self.size + 1, (2,), generator=self.generator).tolist()
            patch = image[:, top : top + self.size, left : left + self.size]
            if torch.rand((), generator=self.generator) < 0.5:
                patch = patch.flip(-1)
            out.append(patch)
        if not out:
            raise ValueError("empty batch")
        return torch.stack(out)


def build():
    return FlipCrop().eval()
