"""Limits and settings, and the one merge of all who can state them. Standard library only: the door imports it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Mode = Literal["explicit", "all", "report", "off"]
MODES = ("explicit", "all", "report", "off")
EXPLAIN = ("rerun", "local", "off")
GRADES = ("typical data", "fresh model", "trained model", "adversarial training", "scaled weights", "zeroed weights")


class Limits(TypedDict, total=False):
    """The user's bounds; none has a default. None removes an inherited one."""

    max_loss: float | None  # |loss|
    max_grad_norm: float | None  # global L2 norm of the unscaled gradients before clipping
    min_grad_norm: float | None  # the same, from below
    max_update_ratio: float | None  # ||dw|| / ||w|| per parameter and step
    min_headroom_bits: float | None  # log2(finfo(dtype).max / max|value|) over outputs, losses, gradients, parameters


LIMIT_HELP = {
    "max_loss": "largest |loss| of any step",
    "max_grad_norm": "largest global L2 norm of the unscaled gradients, before clipping",
    "min_grad_norm": "smallest global L2 norm of the unscaled gradients, before clipping",
    "max_update_ratio": "largest ||dw|| / ||w|| of any parameter in any step",
    "min_headroom_bits": "smallest log2(finfo.max / max|value|) over outputs, losses, gradients and parameters",
}
LIMIT_NAMES = tuple(LIMIT_HELP)
_LONGEST = 200  # characters of a value in a message


@dataclass(frozen=True)
class Limit:
    """One effective limit and the place it was stated."""

    value: float
    source: str


def told(value: object) -> str:
    """`repr(value)` for a message: whatever the value is, printable and not too long to read."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a value of the user's, whose own repr may do anything
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def check_limit(name: str, value: object) -> float | None:
    """`value` as a limit's number, or None; `TypeError` or `ValueError` say what is allowed."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or None, got {told(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer larger than any float
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be a finite number, 0 or more, got {told(value)}")
    return number


def maybe(given: str, allowed: Sequence[str]) -> str:
    """The end of a message that refuses a name: which one may have been meant."""
    from difflib import get_close_matches

    close = get_close_matches(given, allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_limits(given: Mapping[str, object], *, besides: Sequence[str] = ()) -> dict[str, float | None]:
    """A mapping of limit names to numbers or None; `TypeError` names an unknown key and the allowed ones.

    `besides` are the arguments that are taken beside the limits.
    """
    unknown = sorted(set(given) - set(LIMIT_NAMES))
    if unknown:
        others = f"allowed are {', '.join(besides)} and the limits" if besides else "the limits are"
        meant = maybe(unknown[0], [*besides, *LIMIT_NAMES])
        raise TypeError(f"unknown argument {unknown[0]!r}; {others} {', '.join(LIMIT_NAMES)}{meant}")
    return {name: check_limit(name, value) for name, value in given.items()}


def merge_limits(layers: Iterable[tuple[str, Mapping[str, float | None]]]) -> dict[str, Limit]:
    """Merge (source, limits) layers field by field, the weakest first; a None takes an inherited limit away."""
    merged: dict[str, Limit] = {}
    for source, limits in layers:
        for name, value in limits.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = Limit(value, source)
    return {name: merged[name] for name in LIMIT_NAMES if name in merged}


def limits_from_call(
    given: Mapping[str, Any], inherited: Mapping[str, Limit] | None = None, *, besides: Sequence[str] = ()
) -> dict[str, Limit]:
    """The limits of a call on top of those inherited from marker and ini; `besides` as for `check_limits`."""
    layers: list[tuple[str, Mapping[str, float | None]]] = [
        (limit.source, {name: limit.value}) for name, limit in (inherited or {}).items()
    ]
    return merge_limits([*layers, ("call", check_limits(given, besides=besides))])
