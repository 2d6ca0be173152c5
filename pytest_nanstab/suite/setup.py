"""`TrainingSetup`: everything that takes part in training one model, checked when it is made."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

Batch: TypeAlias = Any  # any pytree; only the user's own loss knows its shape
Batches: TypeAlias = "Iterable[Batch] | Callable[[], Iterable[Batch]]"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSetup:
    """One model with its loss, optimizer and data.

    Attributes:
        model: the model to train, in place.
        loss: `loss(model, batch)` returns a scalar floating tensor that requires grad.
        optimizer: one optimizer or a sequence of them; they need not own all of the model's parameters.
        batches: the training batches: a DataLoader, a list, or a function that returns an iterable. Cycled.
        eval_batches: the batches of evaluation; `batches` by default.
        lr_scheduler: steps once per optimizer step.
        clip_grad_norm: largest global L2 norm of the gradients of all optimizers' parameters.
        training_step: `training_step(batch)` does zero_grad, backward, clipping and the optimizer steps itself and
            returns the loss; excludes `lr_scheduler` and `clip_grad_norm`.
        domain: what legal batches look like: a pytree of `TensorSpec` shaped like a batch.
        sizes: legal range (lowest, highest) of the named sizes in `domain`; unnamed ones are (1, 8).
        repair: maps a generated batch to a legal one, for rules a `TensorSpec` cannot say.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument has an impossible value, or two exclude each other.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Batch], Tensor]
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
    batches: Batches
    eval_batches: Batches | None = None
    lr_scheduler: LRScheduler | None = None
    clip_grad_norm: float | None = None
    training_step: Callable[[Batch], Tensor] | None = None
    domain: Any = None
    sizes: Mapping[str, tuple[int, int]] | None = None
    repair: Callable[[Batch], Batch] | None = None

    def __post_init__(self) -> None:
        _require(isinstance(self.model, nn.Module), "model", self.model, "a torch.nn.Module")
        _require(callable(self.loss), "loss", self.loss, "a function (model, batch) -> scalar tensor")
        _check_loss(self.loss)
        _check_optimizers(self.optimizer)
        check_batches(self.batches, "batches")
        if self.eval_batches is not None:
            check_batches(self.eval_batches, "eval_batches")
        is_scheduler = self.lr_scheduler is None or isinstance(self.lr_scheduler, LRScheduler)
        _require(is_scheduler, "lr_scheduler", self.lr_scheduler, "a torch.optim.lr_scheduler.LRScheduler or None")
        _check_clip(self.clip_grad_norm)
        for name in ("training_step", "repair"):
            value = getattr(self, name)
            _require(value is None or callable(value), name, value, "a function (batch) or None")
            if value is not None:
                _check_call(name, value, "batch")
        self._check_combinations()
        self._check_domain()

    def _check_combinations(self) -> None:
        for name in ("lr_scheduler", "clip_grad_norm"):
            if self.training_step is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} and training_step exclude each other: a training_step does its own backward, clipping "
                    f"and stepping; move {name} into it"
                )
        if self.sizes is not None and self.domain is None:
            raise ValueError(f"sizes names the sizes of a domain, got {self.sizes!r} without domain")

    def _check_domain(self) -> None:
        if self.domain is None:
            return
        from pytest_nanstab.batches.layout import plan

        for field in plan(self.domain, self.sizes).fields:
            spec = field.spec
            is_open = spec.min_value is None or spec.max_value is None
            if spec.family == "float" and spec.kind == "values" and is_open:
                raise ValueError(
                    f"domain: the float field {field.name!r} needs min_value and max_value, got {spec.min_value!r} "
                    f"and {spec.max_value!r}: every finite number would count as legal data"
                )

    def __repr__(self) -> str:
        names = ", ".join(type(optimizer).__name__ for optimizer in optimizers_of(self))
        return f"<TrainingSetup: {type(self.model).__name__}, {names}>"


def optimizers_of(setup: TrainingSetup) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers of a setup in order of stepping."""
    optimizer = setup.optimizer
    return (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer)


def owned_parameters(setup: TrainingSetup) -> list[Tensor]:
    """The parameters of all optimizers, each once."""
    groups = (group for optimizer in optimizers_of(setup) for group in optimizer.param_groups)
    return list({id(parameter): parameter for group in groups for parameter in group["params"]}.values())


def takes_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step cannot do without a closure that computes the loss again, as LBFGS'."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def check_batches(value: object, argument: str) -> None:
    """Refuse what cannot be a source of batches, or is one batch by its type."""
    allowed = "a list of batches, a DataLoader or a function that returns an iterable of batches"
    if isinstance(value, (Tensor, Mapping, str, bytes)):
        raise TypeError(f"{argument} must be {allowed}, got one {type(value).__name__}; put it in a list: [batch]")
    _require(isinstance(value, Iterable) or callable(value), argument, value, allowed)


def _require(condition: bool, argument: str, value: object, allowed: str) -> None:
    if not condition:
        raise TypeError(f"{argument} must be {allowed}, got {_shown(value)}")


def _check_loss(loss: Callable[..., Any]) -> None:
    """Refuse torch's own losses: they take a prediction and a target, and would be given the model and a batch."""
    if isinstance(loss, torch.nn.modules.loss._Loss) or getattr(loss, "__module__", "") == "torch.nn.functional":
        raise TypeError(
            f"loss is called as loss(model, batch), and {_shown(loss)} takes a prediction and a target: write a "
            "function, such as lambda model, batch: criterion(model(batch[0]), batch[1])"
        )
    _check_call("loss", loss, "model", "batch")


def _check_call(argument: str, function: Callable[..., Any], *given: str) -> None:
    """Refuse a function that cannot be called as it will be; one without a signature is taken at its word."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        called = f"{argument}({', '.join(given)})"
        raise TypeError(f"{argument} is called as {called}, which {_shown(function)} does not take: {error}") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def _check_optimizers(value: object) -> None:
    if isinstance(value, torch.optim.Optimizer):
        return
    allowed = "a torch.optim.Optimizer or a sequence of them"
    _require(isinstance(value, Sequence) and not isinstance(value, str), "optimizer", value, allowed)
    assert isinstance(value, Sequence)
    if not value:
        raise ValueError(f"optimizer must be {allowed}, got an empty {type(value).__name__}")
    for index, entry in enumerate(value):
        _require(isinstance(entry, torch.optim.Optimizer), f"optimizer[{index}]", entry, "a torch.optim.Optimizer")


def _check_clip(value: object) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    _require(value is None or is_number, "clip_grad_norm", value, "a number or None")
    if isinstance(value, (int, float)) and not (0 < value < math.inf):
        raise ValueError(f"clip_grad_norm must be a finite number above 0, got {value!r}")
