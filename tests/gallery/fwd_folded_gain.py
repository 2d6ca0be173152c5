"""A half precision encoder carries layer norm gains of 40000, finite themselves, that push its output past 65504."""

from __future__ import annotations

import torch
from torch import nn

OP = ("layer_norm", "native_layer_norm")
PHASE = "forward"
MODULE = "encoder.final_norm"
STEP = 1
CAUSE = ("float16", "half", "65504", "overflow", "weight")


class Encoder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, x):
        h = torch.tanh(self.proj(x)) + x
        return self.final_norm(h)  # culprit


class Probe(nn.Module):
    """A linear probe on top of an exported encoder."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.encoder = Encoder(dim)
        self.classifier = nn.Linear(dim, 3)

    def forward(self, x):
        return self.classifier(self.encoder(x))


def load(gain: float) -> Probe:
    torch.manual_seed(7)
    model = Probe()
    state = model.state_dict()
    # the exporter folded a quantisation scale into the gains of the outlier channels
    state["encoder.final_norm.weight"][::4] = gain
    state["classifier.weight"] *= 1e-3
    model.load_state_dict(state)
    return model.half()


def finetune(model: Probe):
    opt = torch.optim.SGD(model.parameters(), lr=1e-6)
    gen = torch.Generator().manual_seed(1)
    for _ in range(2):
        x = torch.randn(12, 16, generator=gen).half()
        y = torch.randint(0, 3, (12,), generator=gen)
        loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
    return loss


def test_broken() -> None:
    finetune(load(gain=40000.0))


def test_healthy() -> None:
    model = load(gain=2.0)
    assert finetune(model).isfinite()
    assert all(p.isfinite().all() for p in model.parameters())
