"""Tag recommender: AdamW(foreach=True, eps=0) divides zero by zero for embedding rows that no batch has touched yet."""

from __future__ import annotations

import torch
from torch import nn

OP = ("_foreach_addcdiv_", "_foreach_addcdiv", "addcdiv", "div", "AdamW")
PHASE = "optimizer"
MODULE = None
STEP = 1
CAUSE = ("eps",)

VOCAB = 20


class Recommender(nn.Module):
    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.tags = nn.EmbeddingBag(VOCAB, dim, mode="mean")
        self.score = nn.Linear(dim, 1)

    def forward(self, tags: torch.Tensor) -> torch.Tensor:
        return self.score(self.tags(tags)).squeeze(-1)


class Trainer:
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.criterion = nn.BCEWithLogitsLoss()
        self.log: list[float] = []

    def training_step(self, tags: torch.Tensor, clicked: torch.Tensor) -> torch.Tensor:
        return self.criterion(self.model(tags), clicked)

    def run(self, steps: int) -> None:
        rng = torch.Generator().manual_seed(11)
        for step in range(steps):
            tags = torch.randint(0, 5 + 5 * step, (4, 3), generator=rng)
            loss = self.training_step(tags, torch.tensor([0.0, 1.0, 1.0, 0.0]))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.log.append(loss.item())


def test_broken() -> None:
    torch.manual_seed(0)
    model = Recommender()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, eps=0, foreach=True)  # culprit
    Trainer(model, optimizer).run(4)


def test_healthy() -> None:
    torch.manual_seed(0)
    model = Recommender()
    trainer = Trainer(model, torch.optim.AdamW(model.parameters(), lr=5e-3, foreach=True))
    trainer.run(4)
    assert torch.tensor(trainer.log).isfinite().all()
    assert model.tags.weight.isfinite().all()
    assert model.tags.weight.grad.isfinite().all()
