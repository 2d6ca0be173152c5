"""The number formats a training runs in, by Lightning's words: what is cast, what autocast wraps, what is scaled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from pytest_nanstab.suite.batching import converted
from pytest_nanstab.suite.setup import Batch, TrainingSetup, optimizers_of, owned_parameters, takes_closure
from pytest_nanstab.suite.spec import PRECISIONS, Precision


class InapplicableError(RuntimeError):
    """This model cannot run in this precision, or on this device, at all; the text says why."""


@dataclass(frozen=True)
class _Format:
    true: torch.dtype | None = None  # what the model and its float inputs are cast to
    autocast: torch.dtype | None = None
    scaled: bool = False


_FORMATS: dict[Precision, _Format] = {
    "64-true": _Format(true=torch.float64),
    "32-true": _Format(true=torch.float32),
    "bf16-true": _Format(true=torch.bfloat16),
    "16-true": _Format(true=torch.float16),
    "bf16-mixed": _Format(autocast=torch.bfloat16),
    "16-mixed": _Format(autocast=torch.float16, scaled=True),
}
# torch names the dtype that lacks a kernel; an integer there is a mistake of the program, not of the precision. oneDNN
# has no recurrent layers in bfloat16 for processors without AVX-512, and says no more than that.
_NO_KERNEL = re.compile(
    r"not implemented for(?! '?(?:Long|Int|Short|Char|Byte|Bool)\b)|could not create a primitive(?! cache)"
)
_NO_DTYPE = re.compile(
    r"MPS.*(?:float64|double|bfloat16)|does not support (?:float64|double|bfloat16|half)", re.I | re.S
)


@dataclass(frozen=True)
class Arithmetic:
    """The number format in force: how batches are cast and what wraps a step."""

    precision: Precision
    device: torch.device | None  # None: everything stays where it is
    device_type: str
    cast: torch.dtype | None
    autocast_dtype: torch.dtype | None
    scaled: bool

    def batch(self, batch: Batch) -> Batch:
        """The batch on the run's device and, under `*-true`, with its floating tensors cast."""
        return converted(batch, device=self.device, dtype=self.cast)

    def autocast(self) -> AbstractContextManager[object]:
        """What wraps the loss, or a whole training step."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.autocast_dtype)

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """A fresh loss scaler with torch's defaults, under "16-mixed"."""
        return torch.amp.GradScaler(self.device_type) if self.scaled else None


@contextmanager
def arithmetic(setup: TrainingSetup, precision: Precision, *, device: str = "cpu") -> Iterator[Arithmetic]:
    """Move and cast the setup's model in place and hold the default dtype for the block.

    "32-true" leaves a model with float32 parameters, and its batches, exactly as they are. The cast of the model stays;
    the default dtype is restored, also on an exception.

    Raises:
        ValueError: an unknown precision.
        InapplicableError: the model or the machine cannot do it.
    """
    __tracebackhide__ = True
    form = _FORMATS[check_precision(precision)]
    place = _device(device)
    _check_applicable(setup, precision, form)
    cast = form.true if form.true is not None and _needs_cast(setup, form.true) else None
    with explained(precision):
        _move(setup, place, cast)
    kind = next((parameter.device.type for parameter in setup.model.parameters()), place.type if place else "cpu")
    scaled = form.scaled and setup.training_step is None
    result = Arithmetic(precision, place, kind, cast, form.autocast, scaled)
    with in_force(result):
        yield result


@contextmanager
def as_given(setup: TrainingSetup, *, device: str = "cpu") -> Iterator[Arithmetic]:
    """The setup in its own dtypes; a model that had to move to another device is moved back."""
    __tracebackhide__ = True
    place = _device(device)
    before = {parameter.device for parameter in setup.model.parameters()}
    _move(setup, place, None)
    kind = next((parameter.device.type for parameter in setup.model.parameters()), place.type if place else "cpu")
    try:
        yield Arithmetic("32-true", place, kind, None, None, scaled=False)
    finally:
        if place is not None and len(before) == 1:
            _move(setup, before.pop(), None)


@contextmanager
def in_force(form: Arithmetic) -> Iterator[None]:
    """Hold the default dtype of an arithmetic for the block, with a model that has been cast before."""
    before = torch.get_default_dtype()
    try:
        if form.cast is not None:
            torch.set_default_dtype(form.cast)
        yield
    finally:
        torch.set_default_dtype(before)


def check_precision(precision: str) -> Precision:
    """`precision`, if it is one of the six; `ValueError` lists them."""
    for known in PRECISIONS:
        if known == precision:
            return known
    raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


@contextmanager
def explained(precision: str) -> Iterator[None]:
    """Turn torch's refusal to compute in a dtype into `InapplicableError`; "32-true" hides nothing."""
    __tracebackhide__ = True
    try:
        yield
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        text = str(error)
        if precision == "32-true" or not (_NO_KERNEL.search(text) or _NO_DTYPE.search(text)):
            raise
        raise InapplicableError(f"{precision} does not apply: {text.strip().splitlines()[0]}") from error


def _device(name: str) -> torch.device | None:
    """The device to move to; "cpu" leaves everything where the user put it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        return None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"nanstab_device must be a torch device or auto, got {name!r}") from error
    absent = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if absent.get(device.type, False):
        raise InapplicableError(f"device {name} does not apply: torch sees none on this machine")
    return device


def _check_applicable(setup: TrainingSetup, precision: Precision, form: _Format) -> None:
    dtypes = {parameter.dtype for parameter in setup.model.parameters()}
    complexes = [dtype for dtype in dtypes if dtype.is_complex]
    if complexes and form.true is not None and _needs_cast(setup, form.true):
        raise InapplicableError(f"{precision} does not apply: the model has {complexes[0]} parameters")
    if form.autocast is not None and torch.float64 in dtypes and torch.float32 not in dtypes:
        raise InapplicableError(f"{precision} does not apply: the model is float64, which autocast leaves alone")
    closures = [type(optimizer).__name__ for optimizer in optimizers_of(setup) if takes_closure(optimizer)]
    if form.scaled and setup.training_step is None and closures:
        raise InapplicableError(
            f"{precision} does not apply: GradScaler cannot drive {closures[0]}, which has a closure"
        )


def _needs_cast(setup: TrainingSetup, dtype: torch.dtype) -> bool:
    """Whether anything would change; a model that has float32 parameters counts as a float32 model."""
    floating = {parameter.dtype for parameter in setup.model.parameters() if parameter.is_floating_point()}
    if dtype is torch.float32:
        return bool(floating) and torch.float32 not in floating
    return True


def _move(setup: TrainingSetup, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Cast and move the model and whatever else the optimizers train, in place; optimizer state follows."""
    if device is None and dtype is None:
        return
    setup.model.to(device=device, dtype=dtype)
    with torch.no_grad():
        for parameter in owned_parameters(setup):
            moved = converted(parameter.data, device=device, dtype=dtype)
            if moved is not parameter.data:
                parameter.grad = None
                parameter.data = moved
    for optimizer in optimizers_of(setup):
        if optimizer.state:
            optimizer.load_state_dict(optimizer.state_dict())
