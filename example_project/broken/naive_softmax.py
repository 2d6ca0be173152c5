"""Culprit: softmax written as exp(x) / sum(exp(x)); float32 overflows above 88.7.

Seen: under a high learning rate the scores pass 88 within a few steps, and inf / inf is NaN.
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


class NaiveAttention(MultiHeadAttention):
    def weights(self, scores: Tensor) -> Tensor:
        return torch.exp(scores) / torch.exp(scores).sum(dim=-1, keepdim=True)  # culprit


def train_with(attention: type[MultiHeadAttention]) -> list[float]:
    torch.manual_seed(0)
    names = NamePairs(batch_size=16)
    model = Seq2SeqTransformer(Seq2SeqConfig(len(names.source), len(names.target), attention=attention))
    return train(model, seq2seq_loss, names.train, Adam(model.parameters(), lr=0.3), steps=8)


def test_broken() -> None:
    assert not train_with(NaiveAttention)[-1] > 100


def test_healthy() -> None:
    assert train_with(MultiHeadAttention)[-1] < 100
