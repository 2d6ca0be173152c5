"""The contrast stretch divides by max - min, which is 0 for an all black or all white image."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

POLICY = "reject"
KWARGS = {}
HOLDS = True
CULPRIT = "(img - lo) / (hi - lo)"


def sample():
    rng = np.random.default_rng(12)
    return rng.integers(0, 256, size=(6, 1, 5, 5), dtype=np.uint8)


def stretch(img):
    lo, hi = img.min(), img.max()
    return (img - lo) / (hi - lo)


def stretch_flat(img):
    lo, hi = img.min(), img.max()
    return (img - lo) / (hi - lo).clamp(min=1.0)


class Scans(Dataset):
    def __init__(self, images, transform):
        self.images = images
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        img = self.images[i]
        if img.dtype != np.uint8 or img.size == 0:
            raise TypeError(f"scan {i}: expected 8-bit pixels")
        return self.transform(torch.from_numpy(img.copy()).float())


def build(fixed: bool, data):
    dataset = Scans(data, stretch_flat if fixed else stretch)
    return DataLoader(dataset, batch_size=3, num_workers=2)
