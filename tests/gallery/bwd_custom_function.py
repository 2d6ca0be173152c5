"""A custom autograd.Function for the signed square root divides by the root, which is zero for zero inputs."""

from __future__ import annotations

import torch
from torch import nn

OP = ("div", "SignedRoot", "SignedRootBackward")
PHASE = "backward"
MODULE = "root"
STEP = 2
CAUSE = ("zero", "divi", "backward", "eps")


class SignedRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign() * x.abs().sqrt()

    @staticmethod
    def backward(ctx, grad_out):
        return grad_out / (2 * ctx.saved_tensors[0].abs().sqrt())  # culprit


class BoundedRoot(SignedRoot):
    @staticmethod
    def backward(ctx, grad_out):
        return grad_out / (2 * ctx.saved_tensors[0].abs().sqrt()).clamp_min(1e-2)


class Root(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


class RootFeatures(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.project, self.root, self.out = nn.Linear(4, 3, bias=False), Root(function), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.root(self.project(x))).squeeze(1)


def main(function=SignedRoot):
    data = torch.randn(3, 4, 4, generator=torch.manual_seed(6))
    model = RootFeatures(function)
    data[1, 0] = 0.0
    opt = torch.optim.SGD(model.parameters(), lr=1e-2)
    for x in data:
        loss = (model(x) - x.norm(dim=1)).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    return loss, model


def test_broken() -> None:
    main()


def test_healthy() -> None:
    loss, model = main(BoundedRoot)
    assert loss.isfinite()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters())
