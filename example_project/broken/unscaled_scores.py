"""Culprit: attention scores without 1/sqrt(d_k), in a layer that takes their exponential itself.

Seen: training ends the sooner the larger d_k: the scores spread with sqrt(d_k) until exp overflows.
Finding: the loss is NaN at the step whose scores overflow exp.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Adam

from data.names import NamePairs
from models.attention import MultiHeadAttention
from models.seq2seq import Seq2SeqConfig, Seq2SeqTransformer, seq2seq_loss
from training import train

KIND = "nonfinite-loss"


class ExpAttention(MultiHeadAttention):
    def weights(self, scores: Tensor) -> Tensor:
        similarity = torch.exp(scores)
        return similarity / similarity.sum(dim=-1, keepdim=True)


class UnscaledAttention(ExpAttention):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2)  # culprit


def train_with(attention: type[MultiHeadAttention]) -> list[float]:
    torch.manual_seed(0)
    names = NamePairs(batch_size=16)
    sizes = Seq2SeqConfig(len(names.source), len(names.target), d_model=256, heads=1, attention=attention)
    model = Seq2SeqTransformer(sizes)
    return train(model, seq2seq_loss, names.train, Adam(model.parameters(), lr=0.005), steps=6)


def test_broken() -> None:
    assert not train_with(UnscaledAttention)[-1] > 100


def test_healthy() -> None:
    losses = train_with(ExpAttention)
    assert losses[-1] < losses[0]
