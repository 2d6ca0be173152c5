"""Multi-head attention that also returns its weights: one memory consists of padding only, so a whole row is masked."""

from __future__ import annotations

import torch
from torch import nn

OP = ("softmax", "multi_head_attention_forward", "scaled_dot_product_attention")
PHASE = "forward"
MODULE = "reader.attention"
STEP = 3
CAUSE = ("mask", "padding", "-inf", "all")


class Reader(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads=2, batch_first=True)
        self.sink = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, query, memory, padding, with_sink):
        if with_sink:
            memory = torch.cat([self.sink.expand(len(memory), 1, -1), memory], dim=1)
            padding = torch.nn.functional.pad(padding, (1, 0), value=False)
        read, weights = self.attention(query, memory, memory, key_padding_mask=padding, need_weights=True)  # culprit
        return query + read, weights


class QA(nn.Module):
    def __init__(self, with_sink: bool) -> None:
        super().__init__()
        self.with_sink = with_sink
        self.reader = Reader(8)
        self.answer = nn.Linear(8, 4)

    def forward(self, question, facts, padding):
        h, weights = self.reader(question, facts, padding, self.with_sink)
        return self.answer(h.mean(dim=1)), weights


def dialogues():
    gen = torch.Generator().manual_seed(2)
    for lengths in ([3, 5], [4, 1], [2, 0], [5, 5]):
        padding = torch.arange(5)[None, :] >= torch.tensor(lengths)[:, None]
        question = torch.randn(2, 3, 8, generator=gen)
        facts = torch.randn(2, 5, 8, generator=gen)
        yield question, facts, padding, torch.randint(0, 4, (2,), generator=gen)


def train(model: QA) -> QA:
    opt = torch.optim.NAdam(model.parameters(), lr=1e-3)
    for question, facts, padding, answer in dialogues():
        logits, _ = model(question, facts, padding)
        loss = nn.functional.cross_entropy(logits, answer)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model


def test_broken() -> None:
    torch.manual_seed(0)
    train(QA(with_sink=False))


def test_healthy() -> None:
    torch.manual_seed(0)
    assert all(p.isfinite().all() for p in train(QA(with_sink=True)).parameters())
