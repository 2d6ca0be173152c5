"""One forward pass with a rule at every leaf module: how large the signal is on the way in and on the way out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_nanstab.checks import _numbers
from pytest_nanstab.checks._leaves import numeric_leaves
from pytest_nanstab.checks._state import evaluating

_WHOLE = (nn.MultiheadAttention,)  # modules whose children are used without being called


@dataclass
class Executed:
    """One call of a leaf module.

    Attributes:
        layer: dotted path of the module.
        rms_in: root mean square of its first floating input; None without one.
        rms_out: the same of its first floating output; -inf values are left out.
        nonfinite: the output holds NaN or +inf although the input does not.
        norm: whether the module normalises.
    """

    layer: str
    rms_in: float | None = None
    rms_out: float | None = None
    nonfinite: bool = False
    norm: bool = False
    clean: bool = field(default=True, repr=False)


def executed(model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], Any] | None) -> list[Executed]:
    """Every call of a leaf module in one forward pass over `batch`, in order; the model is left as it was.

    Batch normalisation uses the batch's own statistics, as in the first training step, where the batch is large enough.
    """
    with evaluating(model):
        try:
            with _batch_statistics(model):
                return _recorded(model, batch, loss)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return _recorded(model, batch, loss)


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms = [module for module in model.modules() if isinstance(module, kinds)]
    try:
        for norm in norms:
            norm.training = True
        yield
    finally:
        for norm in norms:
            norm.training = False


def _recorded(model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], Any] | None) -> list[Executed]:
    calls: list[Executed] = []
    handles = []
    try:
        for path, module in model.named_modules():
            if isinstance(module, _WHOLE) or not any(True for _ in module.children()):
                before, after = _hooks(path, module, calls)
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after))
        _forward(model, batch) if loss is None else loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _hooks(path: str, module: nn.Module, calls: list[Executed]) -> tuple[Callable[..., None], Callable[..., None]]:
    open_calls: list[Executed] = []

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        # Measured now: an in-place module overwrites its input.
        size, finite = _size((args, kwargs))
        norm = "norm" in type(module).__name__.lower()
        open_calls.append(Executed(path, rms_in=size, norm=norm, clean=finite))

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        call = open_calls.pop()
        call.rms_out, finite = _size(output)
        call.nonfinite = call.clean and not finite
        calls.append(call)

    return before, after


def _size(value: Any) -> tuple[float | None, bool]:
    """Root mean square of the first floating tensor, and whether no NaN or +inf is in it."""
    for leaf in numeric_leaves(value):
        if not isinstance(leaf.values, Tensor) or not _numbers.is_float(leaf) or not leaf.values.numel():
            continue
        return rms(leaf.values)
    return None, True


def rms(values: Tensor) -> tuple[float | None, bool]:
    """Root mean square of the values that are not -inf, and whether the rest is finite."""
    plain = _numbers.real(values)
    seen = _numbers.extent(plain)
    if seen is not None and seen.low == -math.inf and not seen.has_nan:
        plain = plain[plain != -math.inf]
        seen = _numbers.extent(plain)
    if seen is None:
        return None, True
    if not math.isfinite(seen.largest):
        return None, False
    if seen.largest == 0:
        return 0.0, True
    return seen.largest * math.sqrt(float((plain.double() / seen.largest).square().mean())), True


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
