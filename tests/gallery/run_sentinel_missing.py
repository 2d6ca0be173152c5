"""Survey answers coded as integers with -999 for missing; the cast turns the code into NaN and nothing imputes it."""

from __future__ import annotations

import torch
from torch import nn

OP = ("where", "masked_fill", "data", "input")
PHASE = "data"
MODULE = None
STEP = 2
CAUSE = ("nan", "missing", "input", "data", "batch")

MISSING = -999
ANSWERS = torch.tensor(
    [[3, 1, 4], [1, 5, 9], [2, 6, 5], [3, 5, 8], [9, MISSING, 9], [3, 2, 3], [8, 4, 6], [2, 6, 4]], dtype=torch.int64
)
SCORES = torch.tensor([0.1, 0.7, 0.4, 0.5, 0.9, 0.2, 0.6, 0.4])


class Survey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.Sigmoid(), nn.Linear(6, 1))

    def forward(self, answers: torch.Tensor) -> torch.Tensor:
        return self.net(answers).squeeze(-1)


def decode(codes: torch.Tensor) -> torch.Tensor:
    return torch.where(codes == MISSING, float("nan"), codes / 10)  # culprit


def decode_imputed(codes: torch.Tensor) -> torch.Tensor:
    known = codes != MISSING
    return torch.where(known, codes / 10, codes[known].float().mean() / 10)


def fit(decoder) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = Survey()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    log = {}
    order = torch.arange(len(ANSWERS)).split(3)
    for number, rows in enumerate(order):
        answers = decoder(ANSWERS[rows])
        loss = nn.functional.l1_loss(model(answers), SCORES[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()
        log[f"loss/{number}"] = loss.detach()
    log.update({name: p.detach() for name, p in model.named_parameters()})
    log.update({f"{name}.grad": p.grad for name, p in model.named_parameters()})
    return log


def test_broken() -> None:
    fit(decode)


def test_healthy() -> None:
    bad = [name for name, value in fit(decode_imputed).items() if not value.isfinite().all()]
    assert bad == []
