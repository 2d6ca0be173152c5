"""How far a precision's values are from those of "64-true" on the same batch, module by module."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pytest_nanstab.attribution.keeping import kept
from pytest_nanstab.checks._signal import training_without_dropout
from pytest_nanstab.suite.batching import copied
from pytest_nanstab.suite.precision import Arithmetic, in_force
from pytest_nanstab.suite.setup import Batch, TrainingSetup
from pytest_nanstab.watching import measure

_SAMPLED = 4096  # values of one output, evenly spread
_MOST_ROWS = 500
# What rounding explains after n modules: this many eps * sqrt(n). Of 409 trainings of healthy programs (those of
# `tests/zoo`, in "32-true", "bf16-true", "bf16-mixed" and "16-true") half stay under 0.4, 95 % under 1.3; beyond are
# phases of hundreds of turns under a sine, values that are rounded to one bit, and columns of raw years.
_EXPLAINED = 8.0


@dataclass
class Call:
    """What one call of a module was given and returned: values of the first floating tensor of each."""

    path: str
    kind: str
    given: Tensor | None
    returned: Tensor | None
    leaves: int


def parity(setup: TrainingSetup, form: Arithmetic, batch: Batch) -> dict[str, Any] | str:
    """Relative deviations from "64-true" over one forward pass of the model, dropout off; or why there are none.

    Returns:
        `against`, `precision`, `eps` of the format; `loss`, its relative deviation; `modules`, in order of returning,
        with `error` = ||y - y64|| / ||y64|| of the output, `input_error` of the input, and `explained`, which is
        8 eps sqrt(n) after n modules; `first`, the first module whose error is beyond that, or None.
    """
    try:
        wide = replace(form, precision="64-true", cast=torch.float64, autocast_dtype=None, scaled=False)
        exact, drew = _calls(copy.deepcopy(setup.model).double(), setup, wide, batch)
        rounded, _ = _calls(setup.model, setup, form, batch)
    except Exception as error:  # noqa: BLE001 - the training itself went well: what cannot be compared is told
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if drew:
        return "the pass draws random numbers"
    if [call.path for call in exact] != [call.path for call in rounded]:
        return "the passes call different modules"
    return _told(exact, rounded, form)


def _told(exact: list[Call], rounded: list[Call], form: Arithmetic) -> dict[str, Any]:
    eps = _eps(form, rounded)
    rows: list[dict[str, Any]] = []
    for wide, narrow in zip(exact, rounded, strict=True):
        error = deviation(narrow.returned, wide.returned)
        if error is not None:
            rows.append(
                {
                    "module": wide.path,
                    "type": wide.kind,
                    "error": error,
                    "input_error": deviation(narrow.given, wide.given),
                    "explained": _EXPLAINED * eps * math.sqrt(wide.leaves),
                }
            )
    *modules, loss = rows if rows and rows[-1]["type"] == "loss" else [*rows, {"error": None}]
    first = next((row["module"] for row in modules if not row["error"] <= row["explained"]), None)
    return {
        "against": "64-true",
        "precision": form.precision,
        "eps": eps,
        "loss": loss["error"],
        "first": first,
        "modules": modules[:_MOST_ROWS],
    }


def deviation(narrow: Tensor | None, wide: Tensor | None) -> float | None:
    """||narrow - wide|| / ||wide|| over what is a number in both; None where there is nothing to compare.

    Masks (infinite, or beyond half the range of the narrower format) are left out; a value that is finite in the wider
    format only makes the deviation infinite.
    """
    if narrow is None or wide is None or narrow.shape != wide.shape:
        return None
    usual = wide.abs() < float(torch.finfo(narrow.dtype).max) / 2
    reference, measured = wide[usual], narrow[usual].double()
    size = torch.linalg.vector_norm(reference).item()
    if not size > 0:
        return None
    error = torch.linalg.vector_norm(measured - reference).item() / size
    return error if math.isfinite(error) else math.inf


def _eps(form: Arithmetic, calls: list[Call]) -> float:
    """The coarsest format that takes part: that of autocast, or of what the modules return."""
    used = {call.returned.dtype for call in calls if call.returned is not None}
    formats = used if form.autocast_dtype is None else {*used, form.autocast_dtype}
    return max((float(torch.finfo(dtype).eps) for dtype in formats), default=0.0)


def _calls(model: nn.Module, setup: TrainingSetup, form: Arithmetic, batch: Batch) -> tuple[list[Call], bool]:
    """What the modules were given and returned, the loss last; whether random numbers were drawn."""
    given = form.batch(copied(batch))
    calls: list[Call] = []
    with (
        kept(model.modules(), (), [given]) as drew,
        training_without_dropout(model),
        in_force(form),
        form.autocast(),
        torch.enable_grad(),
        _listening(model, calls),
    ):
        loss = setup.loss(model, given)
        calls.append(Call("", "loss", None, _sample(loss), len(calls)))
        return calls, drew()


@contextmanager
def _listening(model: nn.Module, calls: list[Call]) -> Iterator[None]:
    leaves = 0

    def hook_of(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal leaves
            leaves += not module._modules
            sampled = _sample([args, kwargs]), _sample(output)
            calls.append(Call(path, type(module).__name__, *sampled, max(leaves, 1)))

        return hook

    handles = [
        module.register_forward_hook(hook_of(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sample(value: Any) -> Tensor | None:
    for _, tensor in measure.tensors_in(value):
        numbers = measure.plain(tensor)
        if numbers is not None:
            flat = numbers.reshape(-1)
            return flat[:: math.ceil(flat.numel() / _SAMPLED)].clone()
    return None
