"""A deeply nested L2 normalisation written by hand adds its epsilon outside the root and meets an all-zero token."""

from __future__ import annotations

import torch
from torch import nn

OP = ("sqrt",)
PHASE = "backward"
MODULE = "encoder.0.attn.qk_norm"
STEP = 3
CAUSE = ("zero", "sqrt", "eps")


class L2Norm(nn.Module):
    def forward(self, x):
        return x / (torch.sqrt((x**2).sum(-1, keepdim=True)) + 1e-8)  # culprit


class L2NormEps(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt((x**2).sum(-1, keepdim=True) + 1e-8)


class Attention(nn.Module):
    def __init__(self, dim, norm):
        super().__init__()
        self.qkv, self.qk_norm = nn.Linear(dim, 3 * dim, bias=False), norm

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return torch.softmax(self.qk_norm(q) @ self.qk_norm(k).mT, dim=-1) @ v


class Layer(nn.Module):
    def __init__(self, dim, norm):
        super().__init__()
        self.attn, self.ff = Attention(dim, norm), nn.Sequential(nn.Linear(dim, dim), nn.GELU())

    def forward(self, x):
        return x + self.ff(x + self.attn(x))


class Classifier(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.encoder, self.head = nn.Sequential(Layer(6, norm()), Layer(6, norm())), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.encoder(x).mean(dim=1))


def train(norm):
    x, y = torch.randn(8, 4, 6, generator=torch.manual_seed(8)), torch.arange(8) % 2
    x[5, 2:] = 0.0  # this sequence is shorter
    opt = torch.optim.AdamW((model := Classifier(norm)).parameters(), lr=1e-3)
    for xb, yb in zip(x.split(2), y.split(2), strict=True):
        loss = nn.functional.cross_entropy(model(xb), yb)
        opt.zero_grad()
        loss.backward()
        opt.step()
        yield loss, *(p.grad for p in model.parameters()), *model.parameters()


def test_broken() -> None:
    assert sum(1 for _ in train(L2Norm)) == 4


def test_healthy() -> None:
    assert all(t.isfinite().all() for tensors in train(L2NormEps) for t in tensors)
