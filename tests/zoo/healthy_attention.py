"""Healthy transformers that differ in attention, position, norm or the scale of their branches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from . import healthy
from .healthy_transformers import language, listen


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Llama(nn.Module):
    """RMSNorm, rotary positions, SwiGLU, no biases; QK-norm if asked."""

    def __init__(self, vocab: int = 32, dim: int = 32, depth: int = 3, heads: int = 4, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.embed_tokens = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(self.layer(dim, dim // heads, qk_norm) for _ in range(depth))
        self.norm = nn.RMSNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        angles = torch.arange(64).float()[:, None] * 10000 ** (-torch.arange(0, dim // heads, 2) / (dim // heads))
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    @staticmethod
    def layer(dim: int, head_dim: int, qk_norm: bool) -> nn.ModuleDict:
        linear = {name: nn.Linear(dim, dim, bias=False) for name in ("q", "k", "v", "o")}
        mlp = {"gate": nn.Linear(dim, 64, bias=False), "up": nn.Linear(dim, 64, bias=False)}
        norms = {"norm1": nn.RMSNorm(dim), "norm2": nn.RMSNorm(dim)}
        if qk_norm:
            norms |= {"q_norm": nn.RMSNorm(head_dim), "k_norm": nn.RMSNorm(head_dim)}
        return nn.ModuleDict({**linear, **mlp, **norms, "down": nn.Linear(64, dim, bias=False)})

    def rotate(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        length = x.shape[-2]
        return x * self.cos[:length] + torch.cat([-right, left], dim=-1) * self.sin[:length]

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            h = layer["norm1"](x)
            q, k, v = (split(layer[name](h), self.heads) for name in "qkv")
            if "q_norm" in layer:
                q, k = layer["q_norm"](q), layer["k_norm"](k)
            out = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
            x = x + layer["o"](out.transpose(1, 2).flatten(2))
            h = layer["norm2"](x)
            x = x + layer["down"](F.silu(layer["gate"](h)) * layer["up"](h))
        return self.lm_head(self.norm(x))


@healthy(lr=0.03, optimizers=("adam", "adamw", "sgd"))
def llama_rotary(optimizer):
    """Normal 0.02 everywhere: the gated branch is a product of two tiny numbers at first."""
    return language(Llama(), optimizer, clip=1.0)


@healthy(lr=0.03, optimizers=("adam", "adamw", "sgd"))
def llama_qk_norm(optimizer):
    """With normed queries and keys the scale of their projections is free."""
    return language(Llama(qk_norm=True), optimizer, clip=1.0)


class T5Layer(nn.Module):
    """Attention without scaling; the initialisation of the query makes up for it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        inner, hidden = dim, 64
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, dim, bias=False)
        self.wi, self.wo = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        nn.init.normal_(self.q.weight, std=(dim * (inner // heads)) ** -0.5)
        nn.init.normal_(self.k.weight, std=dim**-0.5)
        nn.init.normal_(self.v.weight, std=dim**-0.5)
        nn.init.normal_(self.o.weight, std=inner**-0.5)
        nn.init.normal_(self.wi.weight, std=dim**-0.5)
        nn.init.normal_(self.wo.weight, std=hidden**-0.5)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (split(layer(h), self.heads) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) + bias).float().softmax(dim=-1).type_as(x)
        x = x + self.o((weights @ v).transpose(1, 2).flatten(2))
        return x + self.wo(F.relu(self.wi(self.norm2(x))))


class T5(nn.Module):
    """Decoder only, with a learnt bias per relative distance, embeddings N(0, 1), tied and scaled head."""

    def __init__(self, vocab: int = 32, dim: int = 32, heads: int = 4):
        super().__init__()
        self.shared = nn.Embedding(vocab, dim)
        self.relative = nn.Embedding(16, heads)
        self.layers = nn.ModuleList(T5Layer(dim, heads) for _ in range(3))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        nn.init.normal_(self.relative.weight, std=dim**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.shared(tokens)
        place = torch.arange(tokens.shape[1])
        distance = place[:, None] - place
        bias = self.relative(distance.clamp(0, 15)).permute(2, 0, 1)
        bias = bias.masked_fill(distance < 0, torch.finfo(bias.dtype).min)
        for layer in self.layers:
            x = layer(x, bias)
        return F.linear(self.norm(x) * x.shape[-1] ** -0.5, self.shared.weight)


@healthy(lr=0.02)
def t5_unscaled_attention(optimizer):
    """The mask is the lowest finite number of the dtype."""
    return language(T5(), optimizer, clip=1.0)


class AlibiLM(nn.Module):
    """No positions but a linear penalty on distance, one fixed slope per head."""

    def __init__(self, vocab: int = 32, dim: int = 32, heads: int = 4, depth: int = 2):
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(vocab, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * depth))
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim)) for _ in range(depth))
        self.head = nn.Linear(dim, vocab)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.register_buffer("slopes", 2.0 ** -torch.arange(2, 2 * heads + 1, 2)[:, None, None])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        place = torch.arange(tokens.shape[1])
        distance = (place - place[:, None]).to(x.dtype)
        bias = (self.slopes * distance).masked_fill(distance > 0, -math.inf)
        for i, (qkv, out, mlp) in enumerate(zip(self.qkv, self.out, self.mlp, strict=True)):
            q, k, v = (split(t, self.heads) for t in qkv(self.norms[2 * i](x)).chunk(3, dim=-1))
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + out(attended.transpose(1, 2).flatten(2))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x)


@healthy(lr=0.03)
def alibi_without_final_norm(optimizer):
    """A stream of std 0.02 whose first norm multiplies it, and its gradient, by fifty."""
    return language(AlibiLM(), optimizer)


class FeatureAttention(nn.Module):
    """Linear attention: `elu + 1` features, or performer-like random positive ones in a fixed buffer."""

    def __init__(self, dim: int, heads: int, random_features: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.random_features = random_features
        self.register_buffer("projection", torch.randn(dim // heads, 16))

    def features(self, x: Tensor) -> Tensor:
        if not self.random_features:
            return F.elu(x) + 1
        x = x / x.shape[-1] ** 0.25
        return torch.exp(x @ self.projection - x.square().sum(dim=-1, keepdim=True) / 2) / 4 + 1e-3

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split(t, self.heads) for t in self.qkv(x).chunk(3, dim=-1))
        q, k = self.features(q), self.features(k)
        normaliser = q @ k.sum(dim=-2)[..., None]
        return self.out(((q @ (k.transpose(-2, -1) @ v)) / normaliser).transpose(1, 2).flatten(2))


class FeatureTransformer(nn.Module):
    def __init__(self, random_features: bool, dim: int = 32):
        super().__init__()
        self.embed = nn.Linear(4, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(12, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.attention = nn.ModuleList(FeatureAttention(dim, 4, random_features) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim)) for _ in range(2))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        for i in range(2):
            x = x + self.attention[i](self.norms[2 * i](x))
            x = x + self.mlp[i](self.norms[2 * i + 1](x))
        return self.head(x.mean(dim=1))


@healthy(lr=0.03)
def linear_attention(optimizer):
    """Positive features `elu + 1` instead of a softmax."""
    return listen(FeatureTransformer(random_features=False), optimizer)


@healthy(lr=0.03)
def performer_random_features(optimizer):
    """A random projection N(0, 1) in a buffer, which nothing trains."""
    return listen(FeatureTransformer(random_features=True), optimizer)


class ReZeroLayer(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 64), nn.ReLU(), nn.Linear(64, dim))
        self.resweight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.resweight * self.attention(x, x, x, need_weights=False)[0]
        return x + self.resweight * self.mlp(x)


class DeepNormLayer(nn.Module):
    """Post-norm with the stream scaled up and value, output and feed-forward weights scaled down."""

    def __init__(self, dim: int, depth: int):
        super().__init__()
        self.alpha, beta = (2 * depth) ** 0.25, (8 * depth) ** -0.25
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(dim, 64), nn.Linear(64, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        for layer in (self.v, self.o, self.fc1, self.fc2):
            nn.init.xavier_normal_(layer.weight, gain=beta)
        for layer in (self.q, self.k):
            nn.init.xavier_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split(layer(x), 4) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(self.alpha * x + self.o(out))
        return self.norm2(self.alpha * x + self.fc2(F.relu(self.fc1(x))))


class Stack(nn.Module):
    def __init__(self, layers: list[nn.Module], dim: int = 32):
        super().__init__()
        self.embed = nn.Linear(4, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(12, dim))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(12 * dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x) + self.positions).flatten(1))


@healthy(lr=0.03)
def rezero_transformer(optimizer):
    """No norms at all; all branches are multiplied by one scalar that starts at 0."""
    return listen(Stack([ReZeroLayer(32) for _ in range(4)]), optimizer)


@healthy(lr=0.02)
def deepnorm_transformer(optimizer):
    """Glorot with the gain beta of the paper for values and feed-forward, gain 1 for queries and keys."""
    return listen(Stack([DeepNormLayer(32, 6) for _ in range(6)]), optimizer)
