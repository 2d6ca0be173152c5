"""Attention whose logits are so large at the start that softmax is one-hot."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import init

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import mse, next_token, series, tokens


class DotAttention(nn.Module):
    """One head of dot-product attention."""

    def __init__(self, dim, scale):
        super().__init__()
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.scale = scale
        for layer in (self.to_q, self.to_k, self.to_v):
            init.xavier_normal_(layer.weight)

    def forward(self, x):
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) * self.scale, dim=-1)
        return torch.bmm(weights, v)


class OneBlock(nn.Module):
    """Embed, normalise, attend, read out."""

    def __init__(self, attn, dim):
        super().__init__()
        self.embed = nn.Linear(8, dim)
        self.norm = nn.LayerNorm(dim)
        self.attn = attn
        self.head = nn.Linear(dim, 1)
        for layer in (self.embed, self.head):
            init.xavier_normal_(layer.weight)

    def forward(self, x):
        x = self.embed(x)
        return self.head((x + self.attn(self.norm(x))).mean(1))


def _one_block(optimizer, attn, dim):
    model = OneBlock(attn, dim)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=16))


@sick(check="init_scale", kinds=("init-scale",), module="attn", lr=1e-3)
def dot_product_without_scale(optimizer):
    """No 1/sqrt(d) with 256 dimensions: logits of std 16."""
    return _one_block(optimizer, DotAttention(256, scale=1.0), 256)


@healthy(lr=0.002, optimizers=("adam", "adamw"), precisions=("32-true",))
def dot_product_without_scale_fixed(optimizer):
    """With 1/sqrt(d)."""
    return _one_block(optimizer, DotAttention(256, scale=1 / math.sqrt(256)), 256)


@sick(check="init_scale", kinds=("init-scale",), module="attn", lr=1e-3)
def scale_multiplied(optimizer):
    """The scale is sqrt(d) instead of 1/sqrt(d)."""
    return _one_block(optimizer, DotAttention(64, scale=64**0.5), 64)


@healthy(lr=0.01, optimizers=("sgd", "adam", "adamw"), precisions=("32-true",))
def scale_multiplied_fixed(optimizer):
    """The sign of the exponent is right."""
    return _one_block(optimizer, DotAttention(64, scale=64**-0.5), 64)


class PackedBlock(nn.Module):
    """torch's own attention with a feed-forward, pre-norm."""

    def __init__(self, dim):
        super().__init__()
        self.ln1 = nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.ln2 = nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        y = self.ln1(x)
        x = x + self.self_attn(y, y, y, need_weights=False)[0]
        return x + self.ff(self.ln2(x))


class PackedLM(nn.Module):
    def __init__(self, dim=48, vocabulary=24):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList([PackedBlock(dim), PackedBlock(dim)])
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, vocabulary)

    def forward(self, ids):
        x = self.tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x))


@sick(check="init_scale", kinds=("init-scale",), module="self_attn", lr=1e-3)
def packed_projection_of_normals(optimizer):
    """`init.normal_` on in_proj_weight: queries and keys of size sqrt(48) each."""
    model = PackedLM()
    for layer in model.layers:
        init.normal_(layer.self_attn.in_proj_weight)
    return TrainingSetup(model=model, loss=next_token, optimizer=optimizer(model.parameters()), batches=tokens())


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def packed_projection_of_normals_fixed(optimizer):
    """torch's own initialisation is left alone."""
    model = PackedLM()
    return TrainingSetup(model=model, loss=next_token, optimizer=optimizer(model.parameters()), batches=tokens())


class PointerNet(nn.Module):
    """Additive encoder, then a query per row that points at positions."""

    def __init__(self, dim=64, std=1.0):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(8, dim), nn.Tanh())
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, 1)
        init.normal_(self.query.weight, std=std)
        init.normal_(self.key.weight, std=std)

    def forward(self, x):
        x = self.encode(x)
        q = self.query(x.mean(1, keepdim=True) * x.shape[1] ** 0.5)
        scores = torch.einsum("bqd,bkd->bqk", q, self.key(x)) / q.shape[-1] ** 0.5
        return (scores.softmax(-1) @ self.value(x)).squeeze(1)


@sick(check="init_scale", kinds=("init-scale",), lr=1e-4)
def unit_normal_pointer(optimizer):
    """Query and key are N(0, 1) of fan-in 64; 1/sqrt(d) alone does not help."""
    model = PointerNet()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=16))


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def unit_normal_pointer_fixed(optimizer):
    """Query and key have std 1/sqrt(64)."""
    model = PointerNet(std=1 / 8)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=16))
