"""Mixed-precision loop with a GradScaler: log(0) in the model makes every step infinite and the scale only falls."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

OP = ("log",)
PHASE = "forward"
MODULE = "features.log_counts"
STEP = 1
CAUSE = ("zero", "log1p", "clamp", "eps")


class LogCounts(nn.Module):
    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        return torch.log(counts)  # culprit


class Log1pCounts(nn.Module):
    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        return torch.log1p(counts)


class TopicModel(nn.Module):
    def __init__(self, log_counts: nn.Module) -> None:
        super().__init__()
        layers = {"log_counts": log_counts, "proj": nn.Linear(4, 6), "gate": nn.Sigmoid()}
        self.features = nn.Sequential(OrderedDict(layers))
        self.topic = nn.Linear(6, 3)

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        return self.topic(self.features(counts))


def train_amp(log_counts: nn.Module, steps: int = 12) -> tuple[TopicModel, list[float], list[float]]:
    torch.manual_seed(0)
    model = TopicModel(log_counts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    losses, scales = [], []
    for _ in range(steps):
        counts = torch.randint(0, 4, (8, 4)).float()
        counts[0, 0] = 0.0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(counts), counts[:, :3].argmax(dim=1))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    return model, losses, scales


def test_broken() -> None:
    _, _, scales = train_amp(LogCounts())
    assert scales[-1] < scales[0]


def test_healthy() -> None:
    model, losses, scales = train_amp(Log1pCounts())
    assert torch.tensor(losses).isfinite().all()
    assert scales == [65536.0] * len(scales)
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
