"""A hand-written recurrent cell raises its input power to 0.5, and one time step of the sequence is silent."""

from __future__ import annotations

import torch
from torch import nn

OP = ("pow",)
PHASE = "backward"
MODULE = "cell"
STEP = 2
CAUSE = ("zero", "0.5", "exponent", "sqrt", "eps")


class EnvelopeCell(nn.Module):
    def __init__(self, n_in, n_hidden):
        super().__init__()
        self.inp, self.rec = nn.Linear(n_in, n_hidden, bias=False), nn.Linear(n_hidden, n_hidden)

    def amplitude(self, power):
        return power**0.5  # culprit

    def forward(self, x_t, h):
        drive = self.inp(x_t)
        return torch.tanh(self.rec(h) + self.amplitude(drive * drive))


class FlooredCell(EnvelopeCell):
    def amplitude(self, power):
        return (power + 1e-6) ** 0.5


class Tagger(nn.Module):
    def __init__(self, cell_type):
        super().__init__()
        self.cell = cell_type(3, 5)
        self.out = nn.Linear(5, 4)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], self.cell.rec.in_features)
        logits = []
        for x_t in x.unbind(dim=1):
            h = self.cell(x_t, h)
            logits.append(self.out(h))
        return torch.stack(logits, dim=1)


def train(cell_type):
    torch.manual_seed(0)
    sequences = torch.randn(3, 2, 6, 3)
    sequences[1, 0, 4] = 0.0
    labels, tagger = torch.randint(0, 4, (3, 2, 6)), Tagger(cell_type)
    opt = torch.optim.RMSprop(tagger.parameters(), lr=1e-3)
    for x, y in zip(sequences, labels, strict=True):
        loss = nn.functional.cross_entropy(tagger(x).reshape(-1, 4), y.reshape(-1))
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tagger.parameters(), 1.0)
        opt.step()
    return tagger, loss


def test_broken() -> None:
    train(EnvelopeCell)


def test_healthy() -> None:
    tagger, loss = train(FlooredCell)
    assert loss.isfinite()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in tagger.parameters())
