"""Home-made LARS whose trust ratio divides by the gradient norm, zero below a zero-initialised output layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

OP = ("div",)
PHASE = "optimizer"
MODULE = None
STEP = 1
CAUSE = ("zero",)


class LARS(Optimizer):
    def __init__(self, params, lr=0.1, momentum=0.9, trust=0.02, guard=False) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust})
        self.guard = guard

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                w_norm, g_norm = p.norm(), p.grad.norm()
                ratio = 1.0
                if not self.guard or (w_norm > 0 and g_norm > 0):
                    ratio = group["trust"] * w_norm / g_norm  # culprit
                buf = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buf.mul_(group["momentum"]).add_(ratio * p.grad)
                p.add_(buf, alpha=-group["lr"])
        return loss


def fit(**options) -> list[torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
    nn.init.zeros_(net[2].weight)
    optimizer = LARS(net.parameters(), **options)
    x = torch.randn(20, 3)
    y = x.prod(1, keepdim=True)
    seen = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        seen += [loss.detach()] + [t.detach().clone() for p in net.parameters() for t in (p, p.grad)]
    return seen


def test_broken() -> None:
    fit()


def test_healthy() -> None:
    assert all(t.isfinite().all() for t in fit(guard=True))
