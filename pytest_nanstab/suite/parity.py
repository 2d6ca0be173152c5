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
from pytest_nanstab.watching.patches import Patches

_SAMPLED = 4096  # values of one output, evenly spread
_MOST_ROWS = 500
# What rounding explains after n modules: this many eps * sqrt(n). Of 409 trainings of healthy programs (those of
# `tests/zoo`, in "32-true", "bf16-true", "bf16-mixed" and "16-true") half stay under 0.4, 95 % under 1.3; beyond are
# phases of hundreds of turns under a sine, values that are rounded to one bit, and columns of raw years.
_EXPLAINED = 8.0
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
_MASKS = 1e6  # times the median
_ZERO = 1e-8  # the root of float64's eps


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
        `against`, `precision`, `eps` of the format; `loss`, its relative deviation, and `loss_explained`; `modules`, in
        order of returning, with `error` = ||y - y64|| / ||y64|| of the output, `input_error` of the input, and
        `explained`, which is 8 eps sqrt(n) after n modules; `first`, the first module whose error is beyond that, or
        None, and `before`, whether its input was already.
    """
    try:
        wide = replace(form, precision="64-true", cast=torch.float64, autocast_dtype=None, scaled=False)
        exact, drew = _calls(copy.deepcopy(setup.model).double(), setup, wide, batch)
        rounded, _ = _calls(setup.model, setup, form, batch)
        again, _ = _calls(setup.model, setup, form, batch)
    except Exception as error:  # noqa: BLE001 - the training itself went well: what cannot be compared is told
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if drew:
        return "the pass draws random numbers"
    if not all(map(_is_the_same, rounded, again)):
        return "the pass is another when it is run once more"
    if [call.path for call in exact] != [call.path for call in rounded]:
        return "the passes call different modules"
    return _told(exact, rounded, form)


def _told(exact: list[Call], rounded: list[Call], form: Arithmetic) -> dict[str, Any]:
    eps = _eps(form, rounded)
    rows: list[dict[str, Any]] = []
    for wide, narrow in zip(exact, rounded, strict=True):
        error = deviation(narrow.returned, wide.returned, beside=wide.given)
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
    *modules, loss = rows if rows and rows[-1]["type"] == "loss" else [*rows, {"error": None, "explained": None}]
    first = next((row for row in modules if not row["error"] <= row["explained"]), None)
    came = None if first is None else first["input_error"]
    return {
        "against": "64-true",
        "precision": form.precision,
        "eps": eps,
        "loss": loss["error"],
        "loss_explained": loss["explained"],
        "first": None if first is None else first["module"],
        "before": first is not None and came is not None and not came <= first["explained"],
        "modules": modules[:_MOST_ROWS],
    }


def _is_the_same(one: Call, other: Call) -> bool:
    """Whether two passes in one precision gave the same: else it is no rounding that sets a third apart."""
    if one.returned is None or other.returned is None:
        return one.returned is other.returned
    return torch.equal(torch.nan_to_num(one.returned), torch.nan_to_num(other.returned))


def deviation(narrow: Tensor | None, wide: Tensor | None, *, beside: Tensor | None = None) -> float | None:
    """||narrow - wide|| / ||wide|| over what is a number in both; None where there is nothing to compare.

    Masks (infinite, beyond half the range of the narrower format, or a million times the median) are left out; a value
    that is finite in the wider format only makes the deviation infinite. What is 1e-8 of the values `beside` it counts
    as zero: its digits are rounding errors.
    """
    if narrow is None or wide is None or narrow.shape != wide.shape:
        return None
    sizes = wide.abs()
    usual = sizes < float(torch.finfo(narrow.dtype).max) / 2
    median = sizes[usual & (sizes > 0)].median() if bool((usual & (sizes > 0)).any()) else sizes.new_zeros(())
    usual &= sizes <= _MASKS * median
    reference, measured = wide[usual], narrow[usual].double()
    size = torch.linalg.vector_norm(reference).item()
    if not size > 0 or _rms(reference) < _ZERO * _rms(beside):
        return None
    error = torch.linalg.vector_norm(measured - reference).item() / size
    return error if math.isfinite(error) else math.inf


def _rms(values: Tensor | None) -> float:
    if values is None or not values.numel():
        return 0.0
    finite = values[torch.isfinite(values)].double()
    return float(torch.linalg.vector_norm(finite)) / math.sqrt(max(finite.numel(), 1))


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
        _without_drawing(model),
        in_force(form),
        form.autocast(),
        torch.enable_grad(),
        _listening(model, calls),
    ):
        loss = setup.loss(model, given)
        calls.append(Call("", "loss", None, _sample(loss), len(calls)))
        return calls, drew()


@contextmanager
def _without_drawing(model: nn.Module) -> Iterator[None]:
    """Without the dropout that is no module: of attention and recurrent layers, and of torch.nn.functional."""
    functional: Any = nn.functional
    layers = [module for module in model.modules() if isinstance(module, (nn.MultiheadAttention, nn.RNNBase))]
    before = [layer.dropout for layer in layers]
    patches = Patches()
    try:
        for layer in layers:
            layer.dropout = 0.0
        for name in _DROPOUTS:
            if hasattr(functional, name):
                patches.attribute(functional, name, _keeping)
        patches.attribute(functional, "scaled_dot_product_attention", _attending)
        yield
    finally:
        patches.undo()
        for layer, value in zip(layers, before, strict=True):
            layer.dropout = value


def _keeping(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda input, *_, **__: input


def _attending(original: Callable[..., Any]) -> Callable[..., Any]:
    def attention(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0, *a: Any, **k: Any
    ) -> Any:
        return original(query, key, value, attn_mask, 0 * dropout_p, *a, **k)

    return attention


@contextmanager
def _listening(model: nn.Module, calls: list[Call]) -> Iterator[None]:
    leaves = 0

    def hook_of(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal leaves
            leaves += not module._modules
            sampled = _sample([args, kwargs]), _sample(output)
            calls.append(Call(path or type(module).__name__, type(module).__name__, *sampled, max(leaves, 1)))

        return hook

    handles = [
        module.register_forward_hook(hook_of(path), with_kwargs=True)
        for path, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
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
