"""predict() reports the entropy of its class probabilities; confident ones underflow to 0 and the log is -inf."""

from __future__ import annotations

import torch
from torch import nn

OP = ("log",)
PHASE = "eval"
MODULE = None
STEP = None
CAUSE = ("log_softmax", "zero", "clamp", "eps", "xlogy", "entr")


def entropy_of(probs: torch.Tensor) -> torch.Tensor:
    logs = torch.log(probs)  # culprit
    return -(probs * logs).sum(dim=-1)


def entropy_safe(probs: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(probs).sum(dim=-1)


@torch.no_grad()
def predict(model: nn.Module, x: torch.Tensor, entropy) -> dict[str, torch.Tensor]:
    model.eval()
    probs = model(x).softmax(dim=-1)
    return {"label": probs.argmax(dim=-1), "uncertainty": entropy(probs)}


def trained_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    opt = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(5):
        x = torch.randn(16, 2)
        loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long() * 2)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model


FAR_AWAY = torch.tensor([[0.3, -0.2], [900.0, 20.0], [-700.0, 5.0]])


def test_broken() -> None:
    model = trained_model()
    out = predict(model, FAR_AWAY, entropy_of)
    assert not out["uncertainty"].isnan().any()


def test_healthy() -> None:
    model = trained_model()
    out = predict(model, FAR_AWAY, entropy_safe)
    assert out["uncertainty"].isfinite().all()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
