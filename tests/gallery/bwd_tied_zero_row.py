"""A tied-weight language model normalises its embedding rows by a hand-written norm, and the padding row is zero."""

from __future__ import annotations

import torch
from torch import nn

OP = ("sqrt",)
PHASE = "backward"
MODULE = "decoder"
STEP = 1
CAUSE = ("zero", "sqrt", "eps")


class TiedHead(nn.Module):
    """Cosine logits against the rows of the (shared) embedding table."""

    def __init__(self, embed, scale=4.0):
        super().__init__()
        self.weight = embed.weight
        self.scale = scale

    def forward(self, h):
        length = torch.sqrt((self.weight * self.weight).sum(dim=1, keepdim=True))  # culprit
        rows = self.weight / length.clamp_min(1e-6)
        return self.scale * h @ rows.t()


class StableTiedHead(TiedHead):
    def forward(self, h):
        rows = nn.functional.normalize(self.weight, dim=1)
        return self.scale * h @ rows.t()


class TinyLM(nn.Module):
    def __init__(self, vocab, dim, head):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim, padding_idx=0)
        self.mixer = nn.GRU(dim, dim, batch_first=True)
        self.decoder = head(self.embed)

    def forward(self, tokens):
        states, _ = self.mixer(self.embed(tokens))
        return self.decoder(states)


def fit(head, steps=3):
    torch.manual_seed(0)
    model = TinyLM(11, 6, head)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        tokens = torch.randint(1, 11, (4, 7))
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.detach())
    return model, torch.stack(losses)


def test_broken() -> None:
    fit(TiedHead)


def test_healthy() -> None:
    model, losses = fit(StableTiedHead)
    assert losses.isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
