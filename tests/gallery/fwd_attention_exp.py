"""A small encoder whose attention normalises with a bare exp, which overflows on large scores."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

OP = ("exp",)
PHASE = "forward"
MODULE = "layers.1.attn"
STEP = 1
CAUSE = ("softmax", "max", "logsumexp", "overflow")


class SelfAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)

    def normalise(self, scores):
        e = scores.exp()  # culprit
        return e / e.sum(dim=-1, keepdim=True)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.normalise(q @ k.mT / x.shape[-1] ** 0.5) @ v


class SafeSelfAttention(SelfAttention):
    def normalise(self, scores):
        return scores.softmax(dim=-1)


class Block(nn.Module):
    def __init__(self, dim: int, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn
        self.ff = nn.Sequential(nn.Linear(dim, dim), nn.GELU())

    def forward(self, x):
        x = x + self.attn(x)
        return x + 60.0 * self.ff(x)  # residual gain of a deeper network, with norms


def encoder(attn_cls: type[SelfAttention], dim: int = 16, depth: int = 3) -> nn.Sequential:
    layers = nn.Sequential(*(Block(dim, attn_cls(dim)) for _ in range(depth)))
    return nn.Sequential(OrderedDict(embed=nn.Embedding(20, dim), layers=layers, out=nn.Linear(dim, 20)))


def train(attn_cls):
    torch.manual_seed(0)
    model = encoder(attn_cls)
    opt = torch.optim.SGD(model.parameters(), lr=1e-9)
    for tokens in torch.randint(0, 20, (2, 2, 6)):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    return loss


def test_broken() -> None:
    train(SelfAttention)


def test_healthy() -> None:
    assert train(SafeSelfAttention).isfinite()
