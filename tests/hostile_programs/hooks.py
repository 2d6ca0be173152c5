"""Hooks and patches of the user's, put on and taken off before, during and after."""

import types
from unittest import mock

import pytest
import torch
from common import NotNow, X, both, net, sgd, spoiled, step, train
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules import module as module_module
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


def nothing(*_):
    return None


@both
def test_added_and_removed(bad):
    model = net()
    optimizer = sgd(model)
    step(model, optimizer)
    handles = [
        model.register_forward_hook(nothing),
        model.register_forward_pre_hook(nothing),
        model.register_full_backward_hook(nothing),
        model[0].register_forward_hook(nothing),
        optimizer.register_step_pre_hook(nothing),
        optimizer.register_step_post_hook(nothing),
        register_optimizer_step_pre_hook(nothing),
        register_optimizer_step_post_hook(nothing),
        module_module.register_module_forward_hook(nothing),
        module_module.register_module_forward_pre_hook(nothing),
        module_module.register_module_full_backward_hook(nothing),
        model[0].weight.register_hook(nothing),
        model[0].weight.register_post_accumulate_grad_hook(nothing),
    ]
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        step(model, optimizer)
        for handle in handles:
            handle.remove()
        step(model, optimizer, bad)


@both
def test_removed_within_the_call(bad):
    class Clears(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = NotNow()

        def forward(self, x):
            if self.clears:
                for part in self.modules():
                    part._forward_hooks.clear()
                    part._forward_pre_hooks.clear()
                    part._backward_hooks.clear()
            return self.layer(x)

    model = Clears().eval()
    for number in range(4):
        model.layer.bad, model.clears = bad and number == 3, number < 3
        with torch.no_grad():
            model(X)


@both
def test_all_global_hooks_cleared(bad):
    model = net()
    optimizer = sgd(model)
    step(model, optimizer)
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks"):
        getattr(module_module, name).clear()
    step(model, optimizer)
    step(model, optimizer, bad)


@both
def test_forward_replaced(bad):
    model = net()
    optimizer = sgd(model)
    step(model, optimizer)
    model.forward = types.MethodType(lambda self, x: spoiled(self[2](self[1](self[0](x))), bad), model)
    step(model, optimizer)
    del model.forward
    step(model, optimizer)


@both
def test_backward_patched_by_monkeypatch(monkeypatch, bad):
    original = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, *a, **k: original(self, *a, **k))
    train()
    inner = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: inner(*a, **k))
    train(bad)


@pytest.fixture
def patched(monkeypatch):
    inner = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: inner(*a, **k))


@both
def test_backward_patched_before(patched, bad):
    train(bad)


@both
def test_backward_patched_and_undone_in_another_order(bad):
    first = mock.patch.object(torch.autograd, "backward", wraps=torch.autograd.backward)
    first.start()
    second = mock.patch.object(torch.autograd, "backward", wraps=torch.autograd.backward)
    second.start()
    first.stop()
    train()
    second.stop()
    train(bad)
    first.start()  # never stopped


def test_nothing_is_left_behind():
    mock.patch.stopall()
    train()


@both
def test_clips_and_scaler_patched(monkeypatch, bad):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a, **k: torch.tensor(1.0))
    monkeypatch.setattr(torch.amp.GradScaler, "step", lambda self, optimizer: optimizer.step())
    monkeypatch.setattr(torch.no_grad, "__enter__", torch.no_grad.__enter__)
    model = net()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0)
    for number in range(3):
        optimizer.zero_grad()
        loss = spoiled(model(X).square().mean(), bad and number == 1)
        scaler.scale(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)


@both
def test_step_patched(bad):
    model = net()
    optimizer = sgd(model)
    step(model, optimizer)
    original = optimizer.step
    with mock.patch.object(optimizer, "step", side_effect=original):
        step(model, optimizer)
        step(model, optimizer, bad)


@both
def test_call_patched(monkeypatch, bad):
    original = nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *a, **k: original(self, *a, **k))
    train(bad)
    monkeypatch.undo()
    train()


@both
def test_call_patched_in_evaluation(monkeypatch, bad):
    original = nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *a, **k: original(self, *a, **k))
    model = NotNow().eval()
    with torch.no_grad():
        model(X)
        model.bad = bad
        model(X)


@both
def test_train_and_init_patched(bad):
    with mock.patch.object(nn.Module, "train", autospec=True, side_effect=lambda self, mode=True: self):
        with mock.patch.object(torch.optim.Optimizer, "__init__", torch.optim.Optimizer.__init__):
            train(bad)
