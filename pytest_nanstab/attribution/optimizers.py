"""Faults born in an optimizer's own arithmetic: which hyperparameter made them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pytest_nanstab.attribution.causes import Advice
from pytest_nanstab.attribution.origin import Origin
from pytest_nanstab.watching import state

_EPS = "https://github.com/pytorch/pytorch/issues/8860"


def story_of(origin: Origin) -> Advice:
    """Cause and remedy of a parameter or moment that a step made non-finite."""
    guilty = origin.guilty
    group = _group_of(origin)
    rate = state.bad_rate(guilty.by)
    if rate is not None:
        return Advice(
            f"{rate}: the schedule that set it divided by zero or overflowed",
            "make the schedule finite from its first to its last step (max(1, warmup_steps))",
            "https://github.com/Lightning-AI/litgpt/issues/1393",
        )
    no_eps = _of_eps(group, getattr(torch, guilty.dtype, torch.float32)) if _divides(origin) else None
    if no_eps is not None:
        return no_eps
    if guilty.op == "sqrt" and guilty.bad_nan:
        return Advice(
            "the second moment came out negative by rounding (E[g**2] - E[g]**2), and its root is NaN"
            if group.get("centered")
            else "the second moment is negative, and its root is NaN",
            "centered=False" if group.get("centered") else "look at what writes to the optimizer's state",
            "https://github.com/apache/mxnet/pull/6235",
        )
    return _of_size(origin, group)


def suspect(optimizer: Any, parameter: Tensor) -> Advice | None:
    """What must have broken a parameter in a step whose gradients were finite, without a trace of it: an eps of 0."""
    group: dict[str, Any] = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), {})
    return _of_eps(group, parameter.dtype)


def _of_eps(group: dict[str, Any], dtype: torch.dtype) -> Advice | None:
    eps = group.get("eps")
    if not isinstance(eps, (int, float)) or not dtype.is_floating_point:
        return None
    if eps == 0:
        return Advice(
            "eps is 0: where the averaged square of the gradient is 0, or underflows to it, the update divides by 0",
            "give eps its default (1e-8), or 1e-4 in float16",
            _EPS,
        )
    if float(torch.tensor(eps, dtype=dtype)) == 0:
        kind = str(dtype).removeprefix("torch.")
        return Advice(
            f"eps {eps:g} rounds to 0 in {kind}: where the averaged square of the gradient does so too, the update "
            "divides by 0",
            "keep parameters and optimizer state in float32, or use eps=1e-4",
            _EPS,
        )
    return None


def _of_size(origin: Origin, group: dict[str, Any]) -> Advice:
    guilty = origin.guilty
    if guilty.bad_nan:
        return Advice(
            "the update divides 0 by 0",
            "guard the division: add eps, or leave the update out where the divisor is 0",
            "IEEE 754",
        )
    if guilty.op == "addcmul":
        return Advice(
            f"the square of the gradient overflows {guilty.dtype} in the optimizer's second moment",
            "look at what makes the gradient this large: scale the loss or the inputs down, normalise",
            "IEEE 754",
        )
    rate = group.get("lr")
    number = float(rate) if isinstance(rate, (int, float)) and math.isfinite(rate) else None
    rate_shown = f" (lr {number:g})" if number is not None else ""
    return Advice(
        f"the update overflows {guilty.dtype}{rate_shown}: rate, weight decay or gradient are too large",
        "lower the learning rate or weight decay, clip the gradient norm, or keep float32 master weights",
        "IEEE 754",
    )


def _divides(origin: Origin) -> bool:
    return any(made.op in ("addcdiv", "div", "reciprocal") or made.op.startswith("fused") for made in origin.path)


def _group_of(origin: Origin) -> dict[str, Any]:
    groups: list[dict[str, Any]] = getattr(origin.guilty.by, "param_groups", None) or [{}]
    kinds = [group for group in groups if group.get("eps") == 0]
    return (kinds or groups)[0]
