"""One pass over a batch as a model is called: by its loss, or by what its forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_nanstab.checks import _numbers
from pytest_nanstab.checks._leaves import numeric_leaves
from pytest_nanstab.checks._state import evaluating
from pytest_nanstab.propagation.passes import Pass
from pytest_nanstab.propagation.probe import observed
from pytest_nanstab.watching import measure

Loss = Callable[[nn.Module, Any], Any]
_DROPOUTS = nn.modules.dropout._DropoutNd
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def first_pass(model: nn.Module, batch: Any, loss: Loss | None) -> Pass:
    """Every operation of one forward pass over `batch`, and the gradients of its loss; the model is left as it was.

    Batch normalisation uses the batch's own statistics, as in training, where the batch is large enough. Without a
    loss the gradients are those of a fixed random projection of the output.
    """

    def forward() -> Any:
        return projected(_forward(model, batch)) if loss is None else loss(model, batch)

    with evaluating(model):
        try:
            with training_without_dropout(model):
                return observed(model, forward)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            with training_without_dropout(model, batch_statistics=False):
                return observed(model, forward)


def projected(output: Any) -> Tensor | None:
    """A scalar that every floating value of an output takes part in, each with a weight of size 1 / sqrt(n)."""
    total: Tensor | None = None
    generator = torch.Generator().manual_seed(0)
    for _, tensor in measure.tensors_in(output):
        if tensor.is_floating_point() and tensor.requires_grad and tensor.numel():
            signs = torch.randn(tensor.shape, generator=generator).to(tensor)
            part = (torch.where(torch.isneginf(tensor), 0.0, tensor) * signs).sum() / tensor.numel() ** 0.5
            total = part if total is None else total + part.to(total)
    return total


@contextmanager
def training_without_dropout(model: nn.Module, *, batch_statistics: bool = True) -> Iterator[None]:
    """Training mode without dropout: what the first step sees, and the same twice. Whoever calls puts modes back."""
    model.train()
    for module in model.modules():
        if isinstance(module, _DROPOUTS) or (not batch_statistics and isinstance(module, _BATCH_NORMS)):
            module.training = False
    yield


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (list, tuple)):
        return model(*_accepted(model, batch))
    return model(batch)


def _accepted(model: nn.Module, batch: Any) -> Any:
    """All of (inputs, target) where `forward` takes them, else what it has parameters for."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return batch
    for count in range(len(batch), 0, -1):
        try:
            signature.bind(*batch[:count])
        except TypeError:
            continue
        return batch[:count]
    return batch


def check_finite(batch: Any) -> None:
    """`ValueError` when the batch itself holds NaN or +inf: then it says nothing about the model."""
    for leaf in numeric_leaves(batch, name="batch"):
        damage = _numbers.damage_of(leaf)
        if damage is not None and (damage.nan or not isinstance(leaf.values, Tensor) or _has_plus_inf(leaf.values)):
            raise ValueError(f"batch must be finite to judge the model by it, got {damage.what} in {leaf.path}")


def _has_plus_inf(values: Tensor) -> bool:
    return bool(torch.isposinf(_numbers.real(values)).any())
