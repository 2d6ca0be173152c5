"""Each image is standardised by its own deviation, which is zero for an all black image."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "(img - img.mean()) / scale"


def sample():
    g = torch.Generator().manual_seed(14)
    return torch.rand(4, 3, 8, 8, generator=g)


class PerImageStandardise:
    def __init__(self, eps):
        self.eps = eps

    def one(self, img):
        scale = img.std(unbiased=False)
        if self.eps:
            scale = scale.clamp(min=self.eps)
        return (img - img.mean()) / scale

    def __call__(self, batch):
        if batch.ndim != 4 or batch.numel() == 0:
            raise ValueError("expected a batch of images")
        if not ((batch >= 0) & (batch <= 255)).all():
            raise ValueError("pixel values missing or out of range")
        return torch.stack([self.one(img.float()) for img in batch])


def build(fixed):
    return PerImageStandardise(eps=1e-4 if fixed else 0.0)
