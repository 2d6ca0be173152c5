"""Healthy transformers built from torch's own layers or by hand: encoders, language models, vision."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_nanstab import TrainingSetup

from . import MakeOptimizer, healthy
from .healthy_data import cross_entropy, images, next_tokens, signals, text, token_cross_entropy


def language(model: nn.Module, optimizer: MakeOptimizer, clip: float | None = None) -> TrainingSetup:
    return TrainingSetup(
        model=model,
        loss=token_cross_entropy,
        optimizer=optimizer(model.parameters()),
        batches=next_tokens(rows=8),
        clip_grad_norm=clip,
    )


class Encoder(nn.Module):
    """`nn.TransformerEncoder` over linear inputs, mean pooled."""

    def __init__(self, depth: int, norm_first: bool, dropout: float = 0.1):
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.positions = nn.Parameter(0.02 * torch.randn(12, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout, batch_first=True, norm_first=norm_first)
        norm = nn.LayerNorm(32) if norm_first else None
        self.encoder = nn.TransformerEncoder(layer, depth, norm=norm, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x) + self.positions).mean(dim=1))


def listen(model: nn.Module, optimizer: MakeOptimizer) -> TrainingSetup:
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=signals(length=12)
    )


@healthy(lr=0.01)
def post_norm_encoder_2_layers(optimizer):
    """Torch's default encoder: post-norm, and all layers copies of one."""
    return listen(Encoder(2, norm_first=False), optimizer)


@healthy(lr=0.01, optimizers=("sgd", "adam", "adamw"))
def post_norm_encoder_4_layers(optimizer):
    """Four post-norm layers still train without warm-up at a small rate."""
    return listen(Encoder(4, norm_first=False), optimizer)


@healthy(lr=0.01)
def pre_norm_encoder_6_layers(optimizer):
    """All layers are copies of one, as torch makes them."""
    return listen(Encoder(6, norm_first=True), optimizer)


@healthy(lr=0.01, optimizers=("sgd", "adamw"))
def pre_norm_encoder_12_layers(optimizer):
    """Twelve layers: gradients differ by depth but stay within a small factor."""
    return listen(Encoder(12, norm_first=True, dropout=0.0), optimizer)


class CausalSelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool):
        super().__init__()
        self.c_attn = nn.Linear(dim, 3 * dim, bias=bias)
        self.c_proj = nn.Linear(dim, dim, bias=bias)
        self.heads = heads
        self.register_buffer("mask", torch.ones(64, 64, dtype=torch.bool).tril(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, dim = x.shape
        q, k, v = (t.view(rows, length, self.heads, -1).transpose(1, 2) for t in self.c_attn(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~self.mask[:length, :length], -math.inf)
        out = F.softmax(scores, dim=-1) @ v
        return self.c_proj(out.transpose(1, 2).reshape(rows, length, dim))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, bias=bias)
        self.attn = CausalSelfAttention(dim, heads, bias)
        self.ln_2 = nn.LayerNorm(dim, bias=bias)
        self.c_fc = nn.Linear(dim, 4 * dim, bias=bias)
        self.c_proj = nn.Linear(4 * dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """nanoGPT: tied head, no biases, normal 0.02, residual projections scaled down by depth."""

    def __init__(self, vocab: int = 32, dim: int = 32, depth: int = 3, bias: bool = False, gpt2_init: bool = True):
        super().__init__()
        self.wte = nn.Embedding(vocab, dim)
        self.wpe = nn.Embedding(64, dim)
        self.blocks = nn.ModuleList(Block(dim, 4, bias) for _ in range(depth))
        self.ln_f = nn.LayerNorm(dim, bias=bias)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        if gpt2_init:
            self.lm_head.weight = self.wte.weight
            self.apply(self.init_weights)
            for name, parameter in self.named_parameters():
                if name.endswith("c_proj.weight"):
                    nn.init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(2 * depth))

    @staticmethod
    def init_weights(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


@healthy(lr=0.03, optimizers=("adam", "adamw", "sgd"))
def gpt2_init_tied(optimizer):
    """GPT-2's initialisation: almost constant logits; most position rows are never read."""
    return language(GPT(), optimizer, clip=1.0)


@healthy(lr=0.02)
def gpt_default_init(optimizer):
    """Torch's defaults: N(0, 1) embeddings that dwarf the branches of the first blocks; untied head."""
    return language(GPT(bias=True, gpt2_init=False), optimizer)


@healthy(lr=0.1, optimizers=("adamw",), precisions=("32-true",))
def gpt_weight_decay_groups(optimizer):
    """Decay for matrices only, betas (0.9, 0.95), warm-up and cosine; the schedule starts near 0."""
    model = GPT()
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    own = optimizer(groups, betas=(0.9, 0.95))

    def schedule(step):
        return min(1.0, (step + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * min(step, 100) / 100))

    return TrainingSetup(
        model=model,
        loss=token_cross_entropy,
        optimizer=own,
        batches=next_tokens(rows=8),
        clip_grad_norm=1.0,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(own, schedule),
    )


class ViT(nn.Module):
    """Patches by a strided convolution, class token, learnt positions, zero head."""

    def __init__(self, dim: int = 32, depth: int = 3):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, 4)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.encoder(x)[:, 0])


@healthy(lr=0.03)
def vision_transformer(optimizer):
    """Class token of std 1e-6 and a head of zeros, as in timm and torchvision."""
    model = ViT()
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images(3, 16, rows=8)
    )


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token_mix = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.channel_mix = nn.Sequential(nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, dim: int = 32):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 4, 4)
        self.blocks = nn.Sequential(*[MixerBlock(16, dim) for _ in range(4)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


@healthy(lr=0.03)
def mlp_mixer(optimizer):
    """Linear layers over tokens as well as over channels."""
    model = Mixer()
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images(3, 16, rows=8)
    )


class BERT(nn.Module):
    """Post-norm with embedding norm, normal 0.02, a transform before the tied decoder with its own bias."""

    def __init__(self, vocab: int = 34, dim: int = 32):
        super().__init__()
        self.tokens = nn.Embedding(vocab, dim, padding_idx=0)
        self.positions = nn.Embedding(32, dim)
        self.segments = nn.Embedding(2, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        layer = nn.TransformerEncoderLayer(dim, 4, 64, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.transform = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))
        self.decoder_bias = nn.Parameter(torch.zeros(vocab))
        self.pooler = nn.Sequential(nn.Linear(dim, dim), nn.Tanh())
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        self.tokens.weight.data[0].zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]] + self.segments(torch.zeros_like(tokens))
        x = self.transform(self.encoder(self.norm(x)))
        return F.linear(x, self.tokens.weight, self.decoder_bias)


@healthy(lr=0.03, optimizers=("adam", "adamw", "sgd"))
def bert_masked_lm(optimizer):
    """Labels of -100 outside the mask, an unused pooler and an unused second segment."""

    def loss(model, batch):
        tokens, labels = batch
        return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=-100)

    batches = []
    for tokens in text(rows=12):
        chosen = torch.rand(tokens.shape) < 0.2
        batches.append(((tokens + 2).masked_fill(chosen, 1), (tokens + 2).masked_fill(~chosen, -100)))
    model = BERT()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


class Perceiver(nn.Module):
    """Learnt latents of std 0.02 read the inputs by cross-attention twice, with shared weights."""

    def __init__(self, dim: int = 32):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, dim) * 0.02)
        self.embed = nn.Linear(4, dim)
        self.positions = nn.Parameter(torch.randn(12, dim) * 0.02)
        self.norm_in, self.norm_q, self.norm_s = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.cross = nn.MultiheadAttention(dim, 1, batch_first=True)
        self.attention = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.norm_in(self.embed(x) + self.positions)
        z = self.latents.expand(len(x), -1, -1)
        for _ in range(2):
            z = z + self.cross(self.norm_q(z), memory, memory, need_weights=False)[0]
            q = self.norm_s(z)
            z = z + self.attention(q, q, q, need_weights=False)[0]
            z = z + self.mlp(z)
        return self.head(z.mean(dim=1))


@healthy(lr=0.03)
def perceiver_latents(optimizer):
    """Latents that start alike: their queries differ by hundredths only."""
    return listen(Perceiver(), optimizer)
