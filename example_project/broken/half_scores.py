"""Culprit: attention scores multiplied in float16 and scaled afterwards; 65504 is float16's largest number.

Seen: the loss is NaN in the first step, with inputs that float32 and bfloat16 handle.
Finding: the product of queries and keys overflows float16, at its line.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Adam

from data.names import NamePairs
from models.attention import MultiHeadAttention
from models.seq2seq import Seq2SeqConfig, Seq2SeqTransformer, seq2seq_loss
from training import train

KIND = "nonfinite-loss"


class HalfAttention(MultiHeadAttention):
    dtype = torch.float16

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = 60 * q.to(self.dtype), 60 * k.to(self.dtype)
        products = q @ k.transpose(-1, -2)  # culprit
        return products.float() / (3600 * math.sqrt(q.shape[-1]))


class BFloat16Attention(HalfAttention):
    dtype = torch.bfloat16


def train_with(attention: type[MultiHeadAttention]) -> list[float]:
    torch.manual_seed(0)
    names = NamePairs(batch_size=16)
    sizes = Seq2SeqConfig(len(names.source), len(names.target), d_model=256, heads=1, attention=attention)
    model = Seq2SeqTransformer(sizes)
    return train(model, seq2seq_loss, names.train, Adam(model.parameters(), lr=0.001), steps=4)


def test_broken() -> None:
    assert not train_with(HalfAttention)[-1] > 100


def test_healthy() -> None:
    losses = train_with(BFloat16Attention)
    assert losses[-1] < losses[0]
