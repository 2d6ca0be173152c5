"""Learnable gamma correction: contrast stretching makes a pixel negative, and it is raised to a fractional power."""

from __future__ import annotations

import torch
from torch import nn

OP = ("pow",)
PHASE = "forward"
MODULE = "tone.gamma"
STEP = 2
CAUSE = ("negative", "fractional", "exponent", "clamp")


class Gamma(nn.Module):
    def __init__(self, channels: int, floor: float | None = None) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.full((channels, 1, 1), 0.45))
        self.floor = floor

    def forward(self, img):
        if self.floor is not None:
            img = img.clamp(min=self.floor)
        return img**self.exponent  # culprit


class Contrast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.2))

    def forward(self, img):
        return (img - 0.5) * self.gain + 0.5


class Enhancer(nn.Module):
    def __init__(self, floor: float | None) -> None:
        super().__init__()
        self.tone = nn.ModuleDict({"contrast": Contrast(), "gamma": Gamma(3, floor)})
        self.mix = nn.Conv2d(3, 3, kernel_size=1)

    def forward(self, img):
        for stage in self.tone.values():
            img = stage(img)
        return self.mix(img)


def optimise(floor: float | None = None):
    torch.manual_seed(12)
    net = Enhancer(floor)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    for low in (0.3, 0.02, 0.3):  # the second photograph has deep shadows
        img = torch.linspace(low, 0.9, 3 * 4 * 4).view(1, 3, 4, 4)
        loss = nn.functional.l1_loss(net(img), torch.sqrt(img))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net, loss.detach()


def test_broken() -> None:
    optimise()


def test_healthy() -> None:
    net, loss = optimise(floor=1e-4)
    assert loss.isfinite()
    assert all(p.isfinite().all() for p in net.parameters())
