"""A zero gain makes batch 2 infinite; the loop skips that step, but BatchNorm keeps the statistics and eval is NaN."""

from __future__ import annotations

import torch
from torch import nn

OP = ("div", "batch_norm", "native_batch_norm")
PHASE = "eval"
MODULE = None
STEP = 2
CAUSE = ("running", "buffer", "batch", "zero", "div")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.classifier = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


def calibrated(readings: torch.Tensor, gain: torch.Tensor, floor: float | None = None) -> torch.Tensor:
    if floor is not None:
        return readings / gain.clamp_min(floor)
    return readings / gain  # culprit


def train_then_eval(floor: float | None = None) -> tuple[Net, torch.Tensor]:
    torch.manual_seed(6)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    gains = torch.rand(5, 8, 1) + 0.5
    gains[1, 3] = 0.0
    for gain in gains:
        readings = torch.randn(8, 4)
        labels = (readings[:, 0] > 0).long()
        loss = nn.functional.cross_entropy(net(calibrated(readings, gain, floor)), labels)
        if not torch.isfinite(loss):
            continue  # bad batch, do not step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        return net, net(torch.randn(8, 4)).softmax(dim=1)


def test_broken() -> None:
    train_then_eval()


def test_healthy() -> None:
    net, probabilities = train_then_eval(floor=1e-2)
    assert probabilities.isfinite().all()
    assert all(t.isfinite().all() for t in net.state_dict().values())
    assert all(p.grad.isfinite().all() for p in net.parameters())
