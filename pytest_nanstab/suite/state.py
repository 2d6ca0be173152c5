"""Random states and training states that are put back exactly as they were."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_nanstab.suite.setup import TrainingSetup, optimizers_of, owned_parameters


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch, random and (where it is loaded) numpy for the block, and put every state back; None only restores."""
    restore = _random_states()
    try:
        if seed is not None:
            _seed(seed)
        yield
    finally:
        for put_back in restore:
            put_back()


def _seed(seed: int) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:  # the same without remembering, with a stack trace each time, a seed for accelerators that are not there
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def _random_states() -> list[Callable[[], object]]:
    """For every generator in use, the call that restores it."""
    cpu, python = torch.get_rng_state(), random.getstate()
    restore: list[Callable[[], object]] = [lambda: torch.set_rng_state(cpu), lambda: random.setstate(python)]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        legacy = numpy.random.get_state()
        restore.append(lambda: numpy.random.set_state(legacy))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # asking for the states would start CUDA
        cuda = torch.cuda.get_rng_state_all()
        restore.append(lambda: torch.cuda.set_rng_state_all(cuda))
    if torch.backends.mps.is_available():
        mps = torch.mps.get_rng_state()
        restore.append(lambda: torch.mps.set_rng_state(mps))
    return restore


@contextmanager
def modes(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the model in training or evaluation mode for the block; every module's own flag comes back."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


class Snapshot:
    """What a training step changes: parameters, buffers, gradients, optimizer state and options, schedule.

    `restore` puts all of it back bit for bit, as often as needed. What user code keeps elsewhere is not seen.
    """

    def __init__(self, setup: TrainingSetup) -> None:
        self._setup = setup
        # By owner and name: a forward may bind another tensor to a buffer's name instead of writing into it.
        self._buffers = [(module._buffers, dict(module._buffers)) for module in setup.model.modules()]
        tensors = [*setup.model.parameters(), *setup.model.buffers(), *owned_parameters(setup)]
        unique = {id(tensor): tensor for tensor in tensors if not _is_lazy(tensor)}
        self._values = [(tensor, tensor.detach().clone(), _grad(tensor)) for tensor in unique.values()]
        self._optimizers = [(optimizer, *_optimizer_state(optimizer)) for optimizer in optimizers_of(setup)]
        scheduler = setup.lr_scheduler
        self._schedule = None if scheduler is None else copy.deepcopy(scheduler.state_dict())

    def restore(self) -> None:
        """Put everything back in place."""
        for live, buffers in self._buffers:
            live.update(buffers)
        for tensor, value, grad in self._values:
            tensor.grad = None
            if tensor.shape == value.shape and tensor.dtype == value.dtype:
                tensor.data.copy_(value)
            else:
                tensor.data = value.clone()
            tensor.grad = None if grad is None else grad.clone()
        for optimizer, state, options in self._optimizers:
            fresh_state, fresh_options = _copied(optimizer, (state, options))
            optimizer.state.clear()
            optimizer.state.update(fresh_state)
            for group, saved in zip(optimizer.param_groups, fresh_options, strict=True):
                group.update(saved)
        if self._schedule is not None and self._setup.lr_scheduler is not None:
            self._setup.lr_scheduler.load_state_dict(copy.deepcopy(self._schedule))


def _is_lazy(tensor: Tensor) -> bool:
    return isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer))


def _grad(tensor: Tensor) -> Tensor | None:
    return tensor.grad.detach().clone() if tensor.is_leaf and tensor.grad is not None else None


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[Any, Any], list[dict[str, Any]]]:
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    state, copied = _copied(optimizer, (dict(optimizer.state), options))
    return state, copied


def _copied(optimizer: torch.optim.Optimizer, value: Any) -> Any:
    """A deep copy in which the parameters themselves stay the same objects."""
    memo = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
    return copy.deepcopy(value, memo)
