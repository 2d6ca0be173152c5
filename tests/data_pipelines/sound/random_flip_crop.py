"""Random flip and crop of image batches as a transform class; dead pixels become grey first."""

import torch

POLICY = "sanitize"
KWARGS = {}


def sample():
    g = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 10, 10, generator=g)


class RandomFlipCrop:
    def __init__(self, size=8):
        self.size = size

    def __call__(self, images):
        if images.ndim != 4 or min(images.shape[-2:]) < self.size:
            raise ValueError("images too small")
        images = torch.nan_to_num(images.float(), nan=0.5).clamp(0.0, 1.0)
        out = []
        for img in images:
            top = int(torch.randint(0, img.shape[1] - self.size + 1, ()))
            left = int(torch.randint(0, img.shape[2] - self.size + 1, ()))
            img = img[:, top : top + self.size, left : left + self.size]
            if torch.rand(()) < 0.5:
                img = img.flip(-1)
            out.append(img)
        if not out:
            raise ValueError("empty batch")
        return torch.stack(out)


def build():
    return RandomFlipCrop()
