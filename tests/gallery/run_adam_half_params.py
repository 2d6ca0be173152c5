"""Everything cast to float16, then Adam with its default eps, which rounds to zero next to a float16 second moment."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

OP = ("addcdiv", "addcdiv_", "div", "Adam")
PHASE = "optimizer"
MODULE = None
STEP = 1
CAUSE = ("eps", "float16", "half")


def build() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).half()


def loader():
    gen = torch.Generator().manual_seed(7)
    for _ in range(3):
        x = torch.randn(16, 6, generator=gen)
        yield x.half(), (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def one_epoch(net: nn.Module, opt: torch.optim.Optimizer) -> torch.Tensor:
    losses = []
    for x, y in loader():
        opt.zero_grad(set_to_none=False)
        loss = F.cross_entropy(net(x).float(), y)
        loss.backward()
        opt.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_broken() -> None:
    net = build()
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)  # culprit
    one_epoch(net, opt)


def test_healthy() -> None:
    net = build()
    opt = torch.optim.Adam(net.parameters(), lr=1e-3, eps=1e-4)
    assert one_epoch(net, opt).isfinite().all()
    for p in net.parameters():
        assert p.isfinite().all()
        assert p.grad.isfinite().all()
