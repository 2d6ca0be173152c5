"""The training loop: the given objects, in place, one watched step after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pytest_nanstab import progress
from pytest_nanstab.config import Limit, told
from pytest_nanstab.suite.batching import copied, cycle
from pytest_nanstab.suite.precision import Arithmetic, arithmetic, check_precision, explained
from pytest_nanstab.suite.setup import Batch, TrainingSetup, optimizers_of, owned_parameters, takes_closure
from pytest_nanstab.suite.state import modes, seeded
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region
from pytest_nanstab.watching.run import Run


def train(
    setup: TrainingSetup,
    *,
    steps: int = 20,
    precision: str = "32-true",
    seed: int | None = 0,
    limits: Mapping[str, Limit] | None = None,
    device: str = "cpu",
    context: Mapping[str, object] | None = None,
) -> Run:
    """Train the setup's own objects in place for `steps` watched steps; a finding is raised at its sink.

    torch, numpy and random are seeded (`seed=None` leaves them) and get their states back; so do the modes of the
    modules and the default dtype. Parameters stay trained, and cast under `*-true`.

    Raises:
        NonFiniteError: a NaN or infinity in loss, gradients, parameters, buffers, optimizer state or outputs.
        StabilityError: a limit was broken.
        InapplicableError: the model cannot run in this precision or on this device.
        TypeError, ValueError: wrong arguments, or a loss that is no scalar floating tensor with a gradient.
    """
    __tracebackhide__ = True
    check_arguments(setup, steps, precision)
    options = Options(
        limits=limits or {},
        headroom=True,
        update_ratio=True,
        check_parameters=True,
        details=True,
        defers=True,
        shares="train",
    )
    with (
        seeded(seed),
        modes(setup.model, training=True),
        arithmetic(setup, check_precision(precision), device=device) as form,
        Region(options, {**describe(steps, seed, form), **(context or {})}) as region,
    ):
        drive(Stepper(setup, form), region, steps=steps)
    return region.run


def check_arguments(setup: object, steps: object, precision: str) -> None:
    """Refuse wrong arguments of a training, naming what is allowed."""
    if not isinstance(setup, TrainingSetup):
        raise TypeError(f"setup must be a TrainingSetup, got {setup!r}")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be a whole number, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps!r}")
    check_precision(precision)


def describe(steps: int, seed: int | None, form: Arithmetic) -> dict[str, object]:
    """What every finding of a training says about it."""
    known: dict[str, object] = {"steps": steps, "precision": form.precision, "device": form.device_type}
    return known if seed is None else {**known, "seed": seed}


def drive(stepper: Stepper, region: Region, *, steps: int, keep: int = 0) -> list[Batch]:
    """Take up to `steps` steps; a recorded non-finite finding ends the training, since nothing after it means much.

    Returns the first `keep` batches and, last, the batch of the last step, all as the user's code gave them.
    """
    __tracebackhide__ = True
    region.first_call(stepper.setup.model)  # names begin there, whatever part of it a training_step calls
    stream = cycle(stepper.setup.batches)
    kept: list[Batch] = []
    batch: Batch = None
    with progress.stage("training", "step {} of {}") as tell:
        for number in range(1, steps + 1):
            if tell is not None:
                tell(number, steps)
            region.context["batch"] = number
            batch = next(stream)
            if number <= keep:
                kept.append(copied(batch))
            with explained(stepper.form.precision), _placed(number, steps):
                stepper.step(batch)
            # Other ranks would wait for this one.
            if region.ranks.group is None and any(finding.is_nonfinite for finding in region.findings):
                break
    return [*kept, batch]


@contextmanager
def _placed(number: int, steps: int) -> Iterator[None]:
    """Tell which batch it was when a step raises, where an exception takes notes (from Python 3.11 on)."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(f"in step {number} of {steps}, with batch {number}")
        raise


class Stepper:
    """One training step of a setup, by its own `training_step` or by the standard recipe.

    Args:
        setup: what is trained.
        form: the arithmetic it is trained in.
        scaled: whether "16-mixed" scales the loss.
        scheduled: whether the learning rate follows its schedule: one may be over after the planned steps.
    """

    def __init__(self, setup: TrainingSetup, form: Arithmetic, *, scaled: bool = True, scheduled: bool = True) -> None:
        self.setup = setup
        self.form = form
        self.optimizers = optimizers_of(setup)
        self._plain = [optimizer for optimizer in self.optimizers if not takes_closure(optimizer)]
        self._scaler = form.new_scaler() if scaled else None
        self._scheduled = scheduled
        self._begun = False

    def step(self, batch: Batch) -> Tensor:
        """Train on one batch and return its loss."""
        __tracebackhide__ = True
        batch = self.form.batch(batch)
        if self.setup.training_step is not None:
            with self.form.autocast():
                return checked_loss(self.setup.training_step(batch), "training_step", needs_grad=False)
        return self._recipe(batch)

    def _recipe(self, batch: Batch) -> Tensor:
        __tracebackhide__ = True
        loss = self._forward_backward(batch) if self._plain else None
        if self._plain and not self._begun and not any(map(_has_gradient, self._plain)):
            raise ValueError(
                "optimizer: the loss has given a gradient to none of its parameters; they are not the ones that the "
                "loss is computed from (another model's, or a copy's)"
            )
        self._begun = stepped = True
        for optimizer in self.optimizers:
            if optimizer not in self._plain:
                loss = self._step_with_closure(optimizer, batch)
            elif self._scaler is None:
                optimizer.step()
            elif _has_gradient(optimizer):
                self._scaler.step(optimizer)
        if self._scaler is not None:
            stepped = _update(self._scaler)
        assert loss is not None
        if stepped and self._scheduled:
            self._schedule(loss)
        return loss

    def _forward_backward(self, batch: Batch) -> Tensor:
        __tracebackhide__ = True
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with self.form.autocast():
            loss = checked_loss(self.setup.loss(self.setup.model, batch), "loss", needs_grad=True)
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        self._clip()
        return loss

    def _clip(self) -> None:
        if self.setup.clip_grad_norm is None:
            return
        for optimizer in self.optimizers:
            if self._scaler is not None and _has_gradient(optimizer):
                self._scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(owned_parameters(self.setup), self.setup.clip_grad_norm)

    def _step_with_closure(self, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
        __tracebackhide__ = True
        losses: list[Tensor] = []

        def closure() -> float:
            __tracebackhide__ = True
            losses.append(self._forward_backward(batch))
            return losses[-1]  # type: ignore[return-value]  # the stubs say float; every optimizer takes the tensor

        optimizer.step(closure)
        return losses[-1]

    def _schedule(self, loss: Tensor) -> None:
        scheduler = self.setup.lr_scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(loss.detach().float().item())
        elif scheduler is not None:
            scheduler.step()


def checked_loss(loss: object, function: str, *, needs_grad: bool) -> Tensor:
    """`loss` if it can be trained on.

    Raises:
        TypeError: not a tensor, or not a floating one.
        ValueError: more than one number, or cut off from the parameters.
    """
    __tracebackhide__ = True
    if not isinstance(loss, Tensor):
        hint = "; leave out .item()" if isinstance(loss, float) else ""
        raise TypeError(f"{function} must return the loss as a scalar tensor, got {told(loss)}{hint}")
    if not loss.is_floating_point():
        raise TypeError(f"{function} must return a floating tensor, got dtype {loss.dtype}")
    if loss.numel() != 1:
        raise ValueError(f"{function} must return a scalar, got shape {list(loss.shape)}; reduce it, e.g. with .mean()")
    if needs_grad and not loss.requires_grad:
        raise ValueError(
            f"{function} must return a tensor that requires grad, got one cut off from every parameter "
            "(.item(), .detach(), no_grad, or all parameters frozen)"
        )
    return loss


def _has_gradient(optimizer: torch.optim.Optimizer) -> bool:
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])


def _update(scaler: torch.amp.GradScaler) -> bool:
    """Update the loss scale; whether the step was taken (a skipped one lowers the scale)."""
    before = scaler.get_scale()
    scaler.update()
    return not scaler.get_scale() < before
