"""A CRF with forbidden transitions: the hand-written logsumexp subtracts a maximum of -inf from -inf."""

from __future__ import annotations

import torch
from torch import nn

OP = ("sub", "rsub")
PHASE = "forward"
MODULE = "crf"
STEP = 1
CAUSE = ("-inf", "inf - inf", "infinit", "max")


def log_sum_exp(x, dim):
    peak = x.max(dim=dim, keepdim=True).values
    shifted = x - peak  # culprit
    return peak.squeeze(dim) + shifted.exp().sum(dim=dim).log()


class CRF(nn.Module):
    """Tags: 0 outside, 1 begin, 2 inside, 3 start of sentence (nothing leads to it)."""

    def __init__(self, forbidden_score: float) -> None:
        super().__init__()
        self.transitions = nn.Parameter(0.1 * torch.randn(4, 4))
        self.register_buffer("forbidden", torch.zeros(4, 4, dtype=torch.bool))
        self.forbidden[0, 2] = True
        self.forbidden[:, 3] = True
        self.forbidden_score = forbidden_score

    def forward(self, emissions, tags):
        trans = self.transitions.masked_fill(self.forbidden, self.forbidden_score)
        alpha = emissions[0]
        gold = emissions[0, tags[0]]
        for t in range(1, len(emissions)):
            alpha = log_sum_exp(alpha[:, None] + trans, dim=0) + emissions[t]
            gold = gold + trans[tags[t - 1], tags[t]] + emissions[t, tags[t]]
        return log_sum_exp(alpha, dim=0) - gold


class NER(nn.Module):
    def __init__(self, forbidden_score: float) -> None:
        super().__init__()
        self.emit = nn.Embedding(25, 4)
        self.crf = CRF(forbidden_score)

    def forward(self, words, tags):
        return self.crf(self.emit(words), tags)


def train(forbidden_score: float) -> float:
    torch.manual_seed(0)
    model = NER(forbidden_score)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    corpus = [([4, 8, 15], [1, 2, 0]), ([16, 23], [0, 1]), ([4, 2, 2, 1], [0, 1, 2, 2])]
    for words, tags in corpus:
        opt.zero_grad()
        nll = model(torch.tensor(words), torch.tensor(tags))
        nll.backward()
        opt.step()
    return nll.item()


def test_broken() -> None:
    train(float("-inf"))


def test_healthy() -> None:
    assert 0 < train(-1e4) < 1e3
