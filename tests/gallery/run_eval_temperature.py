"""Sampler head that divides by its evaluation temperature, configured as 0 to ask for greedy decoding."""

from __future__ import annotations

import torch
from torch import nn

OP = ("div",)
PHASE = "eval"
MODULE = "decoder.sampler"
STEP = None
CAUSE = ("temperature", "zero", "divi")


class Sampler(nn.Module):
    def __init__(self, train_temperature: float = 1.0, eval_temperature: float = 0.0) -> None:
        super().__init__()
        self.train_temperature = train_temperature
        self.eval_temperature = eval_temperature

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        temperature = self.train_temperature if self.training else self.eval_temperature
        return (logits / temperature).log_softmax(dim=-1)  # culprit


class Decoder(nn.Module):
    def __init__(self, vocab: int, dim: int, eval_temperature: float) -> None:
        super().__init__()
        self.to_vocab = nn.Linear(dim, vocab)
        self.sampler = Sampler(eval_temperature=eval_temperature)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.sampler(self.to_vocab(h))


class LanguageModel(nn.Module):
    def __init__(self, eval_temperature: float, vocab: int = 7, dim: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.decoder = Decoder(vocab, dim, eval_temperature)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.embed(tokens))


def train_and_score(eval_temperature: float) -> tuple[LanguageModel, torch.Tensor]:
    torch.manual_seed(0)
    lm = LanguageModel(eval_temperature)
    text = torch.randint(0, 7, (3, 6))
    opt = torch.optim.Adam(lm.parameters(), lr=1e-2)
    for _ in range(3):
        opt.zero_grad()
        nn.functional.cross_entropy(lm(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).backward()
        opt.step()
    lm.eval()
    with torch.no_grad():
        return lm, lm(text).exp()


def test_broken() -> None:
    train_and_score(eval_temperature=0.0)


def test_healthy() -> None:
    lm, probabilities = train_and_score(eval_temperature=0.7)
    assert probabilities.isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in lm.parameters())
