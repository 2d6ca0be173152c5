"""Image-text matching with an unclamped learned logit scale: exp(scale) feeds its own gradient and overflows."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

OP = ("exp",)
PHASE = "forward"
MODULE = ""
STEP = 20
CAUSE = ("overflow", "clamp", "large", "grow")


class PairScorer(nn.Module):
    def __init__(self, max_scale: float | None = None) -> None:
        super().__init__()
        self.image = nn.Linear(5, 4, bias=False)
        self.text = nn.Linear(3, 4, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))
        self.max_scale = max_scale

    def temperature(self) -> torch.Tensor:
        if self.max_scale is not None:
            return self.logit_scale.clamp(max=self.max_scale).exp()
        return self.logit_scale.exp()  # culprit

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        a = F.normalize(self.image(image), dim=-1)
        b = F.normalize(self.text(text), dim=-1)
        return self.temperature() * (a * b).sum(dim=-1)


def margin_loss(score: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    return -(score * match).mean()


def train(model: PairScorer, steps: int = 30) -> list[float]:
    gen = torch.Generator().manual_seed(1)
    image, text = torch.randn(6, 5, generator=gen), torch.randn(6, 3, generator=gen)
    match = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0, -1.0])
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        loss = margin_loss(model(image, text), match)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def test_broken() -> None:
    torch.manual_seed(0)
    train(PairScorer())


def test_healthy() -> None:
    torch.manual_seed(0)
    model = PairScorer(max_scale=2.0)
    assert torch.tensor(train(model)).isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
