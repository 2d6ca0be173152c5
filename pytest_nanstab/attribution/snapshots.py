"""Models and optimizers put back to what they were: for a rerun that shares them with the run before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from pytest_nanstab.watching import members

_DEPTH = 3


def snapshot(value: Any) -> Callable[[], None]:
    """Keep what modules, optimizers and schedules in `value` hold now; the result puts it back in place."""
    restores = [_of_module(v) if isinstance(v, nn.Module) else _of_optimizer(v) for v in _parts(value, 0)]

    def put_back() -> None:
        for restore in restores:
            restore()

    return put_back


def _parts(value: Any, depth: int) -> Iterator[nn.Module | Optimizer]:
    if isinstance(value, (nn.Module, Optimizer)):
        yield value
    elif depth < _DEPTH and isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item, depth + 1)
    elif depth < _DEPTH and isinstance(value, Mapping):
        yield from _parts(list(value.values()), depth + 1)
    elif depth < _DEPTH and hasattr(value, "__dict__") and not isinstance(value, (type, Tensor)):
        yield from _parts(list(vars(value).values()), depth + 1)


def _of_module(module: nn.Module) -> Callable[[], None]:
    tensors = [t for _, t in (*members.named_parameters(module), *members.named_buffers(module)) if not is_lazy(t)]
    kept = [(tensor, tensor.detach().clone(), _gradient(tensor)) for tensor in tensors]
    modes = [(part, part.training) for part in module.modules()]

    def restore() -> None:
        with torch.no_grad():
            for tensor, values, gradient in kept:
                if tensor.shape == values.shape and tensor.dtype == values.dtype:
                    tensor.data.copy_(values)
                tensor.grad = None if gradient is None else gradient.clone()
        for part, mode in modes:
            part.training = mode

    return restore


def _gradient(tensor: Tensor) -> Tensor | None:
    return tensor.grad.detach().clone() if tensor.is_leaf and tensor.grad is not None else None


def _of_optimizer(optimizer: Optimizer) -> Callable[[], None]:
    memo = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    state, kept = copy.deepcopy((dict(optimizer.state), options), dict(memo))

    def restore() -> None:
        optimizer.state.clear()
        optimizer.state.update(copy.deepcopy(state, dict(memo)))
        for group, options in zip(optimizer.param_groups, kept, strict=False):
            group.update(copy.deepcopy(options))

    return restore
