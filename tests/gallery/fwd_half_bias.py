"""An additive attention bias of -1e5, meant as a large finite number, is minus infinity in a half precision model."""

from __future__ import annotations

import torch
from torch import nn

OP = ("mul",)
PHASE = "forward"
MODULE = "bias"
STEP = 2
CAUSE = ("float16", "half", "65504", "finfo")


class MaskBias(nn.Module):
    """Turns a 0/1 mask into a bias that is added to the scores."""

    def __init__(self, floor: float | None = -1e5) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, mask, dtype):
        floor = torch.finfo(dtype).min / 2 if self.floor is None else self.floor
        hidden = 1 - mask.to(dtype)
        return hidden * floor  # culprit


class SetPooling(nn.Module):
    def __init__(self, bias: MaskBias) -> None:
        super().__init__()
        self.bias = bias
        self.key = nn.Linear(4, 1)
        self.value = nn.Linear(4, 3)

    def forward(self, x, mask):
        scores = self.key(x).squeeze(-1) + self.bias(mask, x.dtype)
        weights = scores.softmax(dim=-1).unsqueeze(1)
        return (weights @ self.value(x)).squeeze(1)


def fit(bias: MaskBias):
    torch.manual_seed(2)
    model = SetPooling(bias).half()
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    sets = torch.randn(3, 2, 5, 4).half()
    masks = torch.ones(3, 2, 5)
    masks[1, 1] = 0  # an empty set
    labels = torch.tensor([[0, 1], [2, 0], [1, 1]])
    for x, mask, y in zip(sets, masks, labels, strict=True):
        sgd.zero_grad()
        loss = nn.functional.cross_entropy(model(x, mask), y)
        loss.backward()
        sgd.step()
    return model


def test_broken() -> None:
    fit(MaskBias())


def test_healthy() -> None:
    assert all(p.isfinite().all() for p in fit(MaskBias(floor=None)).parameters())
