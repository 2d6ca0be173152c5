"""An encoder-decoder Transformer for character sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.names import PAD
from models.attention import MultiHeadAttention, causal_mask


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Sizes of a Seq2SeqTransformer."""

    src_vocab: int
    tgt_vocab: int
    d_model: int = 32
    heads: int = 2
    d_ff: int = 64
    layers: int = 1
    dropout: float = 0.0
    max_length: int = 64
    attention: Callable[[int, int], nn.Module] = MultiHeadAttention


class Positions(nn.Module):
    """Adds sinusoidal positions to scaled token embeddings."""

    table: Tensor

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__()
        position = torch.arange(max_length).unsqueeze(1)
        rate = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000.0) / d_model))
        table = torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=-1).flatten(1)
        self.register_buffer("table", table, persistent=False)

    def forward(self, embedded: Tensor) -> Tensor:
        """float[batch, time, d_model] -> the same."""
        return embedded * math.sqrt(embedded.shape[-1]) + self.table[: embedded.shape[1]]


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer: our own causal self-attention, torch's attention to the source."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.self_attn = config.attention(config.d_model, config.heads)
        self.cross_attn = nn.MultiheadAttention(config.d_model, config.heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.d_model, config.d_ff), nn.ReLU(), nn.Linear(config.d_ff, config.d_model)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.d_model) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor, blocked: Tensor, memory_padding: Tensor) -> Tensor:
        """float[batch, time, d_model] -> the same; the masks are True where nobody must look."""
        normed = self.norms[0](x)
        x = x + self.dropout(self.self_attn(normed, normed, blocked))
        crossed, _ = self.cross_attn(
            self.norms[1](x), memory, memory, key_padding_mask=memory_padding, need_weights=False
        )
        x = x + self.dropout(crossed)
        return x + self.dropout(self.feed_forward(self.norms[2](x)))


class Seq2SeqTransformer(nn.Module):
    """Source ids int64[batch, s] and target ids int64[batch, t] to logits float[batch, t, tgt_vocab]."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.src_embedding = nn.Embedding(config.src_vocab, config.d_model, padding_idx=PAD)
        self.tgt_embedding = nn.Embedding(config.tgt_vocab, config.d_model, padding_idx=PAD)
        self.positions = Positions(config.d_model, config.max_length)
        layer = nn.TransformerEncoderLayer(
            config.d_model, config.heads, config.d_ff, config.dropout, batch_first=True, norm_first=True, bias=False
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.tgt_vocab)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier/Glorot for every matrix, not for some of them."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """Logits of the token after each target token; both inputs start with a token that is not padding."""
        src_padding = src == PAD
        memory = self.encoder(self.positions(self.src_embedding(src)), src_key_padding_mask=src_padding)
        blocked = causal_mask(tgt.shape[1], tgt.device) | (tgt == PAD)[:, None, None, :]
        x = self.positions(self.tgt_embedding(tgt))
        for layer in self.decoder:
            x = layer(x, memory, blocked, src_padding)
        return self.head(self.norm(x))


def seq2seq_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Teacher forcing: cross entropy of each next target character, padding left out."""
    src, tgt = batch
    logits = model(src, tgt[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), tgt[:, 1:], ignore_index=PAD)
