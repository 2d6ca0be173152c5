"""A trainable audio front end takes the magnitude sqrt(re^2 + im^2) of a spectrum, and one clip is silent."""

from __future__ import annotations

import torch
from torch import nn

OP = ("sqrt",)
PHASE = "backward"
MODULE = "frontend.spectrum"
STEP = 3
CAUSE = ("zero", "sqrt", "eps")


class Magnitude(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.eps = eps
        self.register_buffer("window", torch.hann_window(16))

    def forward(self, wave):
        spec = torch.fft.rfft(wave.unfold(-1, 16, 8) * self.window)
        return torch.sqrt(spec.real.square() + spec.imag.square() + self.eps)  # culprit


class FrontEnd(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.preemphasis, self.spectrum = nn.Conv1d(1, 1, 3, padding=1, bias=False), Magnitude(eps)

    def forward(self, wave):
        return torch.log1p(self.spectrum(self.preemphasis(wave).squeeze(1)))


class KeywordSpotter(nn.Module):
    def __init__(self, eps=0.0):
        super().__init__()
        self.frontend, self.classify = FrontEnd(eps), nn.Linear(9, 3)

    def forward(self, wave):
        return self.classify(self.frontend(wave).mean(dim=1))


def clips():
    g = torch.Generator().manual_seed(23)
    wave = torch.randn(4, 2, 1, 64, generator=g)
    wave[2, 1] = 0.0
    return zip(wave, torch.tensor([[0, 1], [2, 0], [1, 2], [0, 1]]), strict=True)


def train(model):
    opt = torch.optim.SGD(model.parameters(), lr=0.05, nesterov=True, momentum=0.8)
    for wave, label in clips():
        loss = nn.functional.cross_entropy(model(wave), label, label_smoothing=0.1)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return loss


def test_broken() -> None:
    torch.manual_seed(0)
    train(KeywordSpotter())


def test_healthy() -> None:
    torch.manual_seed(0)
    model = KeywordSpotter(eps=1e-8)
    assert train(model).isfinite()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
