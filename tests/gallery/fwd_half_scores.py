"""A float16 transformer forgets to scale the attention scores, and the product of queries and keys overflows."""

from __future__ import annotations

import torch
from torch import nn

OP = ("matmul", "bmm", "__matmul__")
PHASE = "forward"
MODULE = "blocks.0.attn"
STEP = 1
CAUSE = ("float16", "half", "65504", "scale")


class Attention(nn.Module):
    def __init__(self, dim: int, scaled: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.scale = dim**-0.5 if scaled else 1.0

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = q * self.scale
        scores = torch.matmul(q, k.transpose(1, 2))  # culprit
        return torch.softmax(scores, dim=-1) @ v


def block(dim: int, scaled: bool) -> nn.ModuleDict:
    return nn.ModuleDict({"attn": Attention(dim, scaled), "norm": nn.LayerNorm(dim)})


class TinyGPT(nn.Module):
    def __init__(self, scaled: bool, dim: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, dim)
        self.blocks = nn.ModuleList([block(dim, scaled), block(dim, scaled)])
        self.lm_head = nn.Linear(dim, 16)
        nn.init.normal_(self.tokens.weight, std=180.0)
        for layer in self.blocks:
            nn.init.orthogonal_(layer["attn"].qkv.weight)

    def forward(self, ids):
        h = self.tokens(ids)
        for layer in self.blocks:
            h = layer["norm"](h + layer["attn"](h))
        return self.lm_head(h)


def pretrain(scaled: bool):
    torch.manual_seed(0)
    model = TinyGPT(scaled).half()
    opt = torch.optim.SGD(model.parameters(), lr=1e-3)
    ids = torch.randint(0, 16, (2, 2, 9))
    for batch in ids:
        logits = model(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model


def test_broken() -> None:
    pretrain(scaled=False)


def test_healthy() -> None:
    assert all(p.isfinite().all() for p in pretrain(scaled=True).parameters())
