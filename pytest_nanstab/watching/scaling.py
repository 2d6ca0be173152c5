"""What GradScaler does between `scale(loss)` and `update()`, as far as verdicts need it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor

# The design's definition of a stuck loss scale: this many attempts in a row without a successful step.
STUCK_ATTEMPTS = 10
# ... and so many in a row are told: torch's first scale of 65536 takes one or two to settle.
STREAK = 3


class Scaling:
    """The state of the one GradScaler in use; all its fields are about the time since its last `update()`."""

    def __init__(self) -> None:
        self.scale: float | None = None
        self.unscaled: set[int] = set()  # ids of parameters whose gradients were unscaled
        self.last_scale: float | None = None  # the scale of the last attempted step
        self.skipped_in_a_row = self.longest_streak = 0
        self.fell_below_one = False
        self.told = False  # a streak is one finding, however it shows
        self._scaled: weakref.ref[Tensor] | None = None  # the scaled loss
        self._value = 0.0  # its value before

    def scaled(self, scaler: Any, given: Any, result: Any) -> None:
        """`scaler.scale(given)` returned `result`."""
        if not scaler.is_enabled():
            return
        self.scale = float(scaler.get_scale())
        if isinstance(given, Tensor) and isinstance(result, Tensor) and given.numel() == 1:
            self._scaled, self._value = weakref.ref(result), float(given.detach())

    def loss(self, tensor: Any, value: float) -> float:
        """The unscaled value of a loss handed to `backward()` while gradients are scaled."""
        if self.scale is None:
            return value
        known = self._scaled is not None and self._scaled() is tensor
        return self._value if known else value / self.scale

    def updated(self, scaler: Any) -> None:
        """`scaler.update()` has run: the next backward may use another scale."""
        before, after = self.scale, float(scaler.get_scale()) if scaler.is_enabled() else None
        if after is not None and before is not None and after < 1.0 <= before:
            self.fell_below_one = True
        self.scale = None
        self.unscaled.clear()
        self._scaled = None

    def gradients_scaled(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the gradients of these parameters are still multiplied by a scale other than 1."""
        return self.scale not in (None, 1.0) and not any(id(p) in self.unscaled for p in parameters)

    def attempted(self, *, skipped: bool) -> None:
        """Count an attempted step."""
        self.last_scale = self.scale
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self.told = self.told and skipped
        self.longest_streak = max(self.longest_streak, self.skipped_in_a_row)

    def notes(self) -> list[str]:
        """A streak of skipped steps is worth a note: a scale that settles takes a few, a diverging model takes many."""
        streak = self.longest_streak
        return [f"GradScaler skipped {streak} steps in a row"] if streak >= STREAK else []


def fused_scale(optimizer: Any) -> float:
    """The scale that an optimizer takes off the gradients inside its own kernel; 1 for all others."""
    scale = getattr(optimizer, "grad_scale", None)
    number = 1.0 if scale is None else float(scale)
    return number if math.isfinite(number) and number > 0 else 1.0


def fused_skip(optimizer: Any) -> bool:
    """Whether such an optimizer will leave this step out because a gradient overflowed."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and float(found) != 0.0
