"""A slow explosion has no guilty operation: what grew, by which factor, over which steps."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_nanstab.watching import measure, state

if TYPE_CHECKING:
    from pytest_nanstab.watching.region import Region
    from pytest_nanstab.watching.run import Run

_KEPT = 8
# Growth of the loss, or of a parameter, that no healthy training shows: a thousandfold, and most steps upwards.
FACTOR = 1e3
# A single step that multiplies the loss by this much is an explosion by itself.
AT_ONCE = 1e5
_SHOWN = 4


@dataclass(frozen=True)
class Explosion:
    """A growth over steps: what grew most, from and to which value, between which steps."""

    what: str
    first: float
    last: float
    first_step: int
    last_step: int
    rows: tuple[dict[str, Any], ...]

    @property
    def per_step(self) -> float:
        """The mean factor of one step."""
        steps = max(self.last_step - self.first_step, 1)
        return math.exp((math.log(self.last) - math.log(self.first)) / steps)


class Growth:
    """The largest magnitude of each parameter and gradient after the last few optimizer steps."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, dict[str, float]]] = deque(maxlen=_KEPT)

    def note(self, region: Region, optimizer: Any) -> None:
        """An optimizer has stepped."""
        sizes: dict[str, float] = {}
        for parameter in state.parameters_of(optimizer):
            size = _largest(parameter)
            if size is not None:
                sizes[region.names.label(optimizer, parameter)] = size
        self._steps.append((region.run.steps, sizes))

    def forget(self) -> None:
        """Nothing of the user's is held; the numbers stay."""

    def span(self) -> tuple[int, int]:
        """The first and the last step kept."""
        return self._steps[0][0], self._steps[-1][0]

    def rows(self) -> list[dict[str, Any]]:
        """The parameters that grew most over the steps kept, with their factors."""
        if len(self._steps) < 2:
            return []
        (first, before), (last, after) = self._steps[0], self._steps[-1]
        grown = [
            (after[name] / size, name, size, after[name])
            for name, size in before.items()
            if size > 0 and math.isfinite(after.get(name, math.nan))
        ]
        grown.sort(reverse=True)
        steps = f"{first} to {last}"
        return [
            {"grew": name, "steps": steps, "from": size, "to": now, "factor": factor}
            for factor, name, size, now in grown[:_SHOWN]
            if factor > 2
        ]


def _largest(tensor: Tensor) -> float | None:
    seen = measure.extent(tensor)
    return seen.largest if seen is not None and seen.finite else None


def explosion_in(run: Run, growth: Growth) -> Explosion | None:
    """Whether loss or gradient norm of a run has grown a thousandfold over its last steps, most of them upwards."""
    rows = tuple(growth.rows())
    for what, values in (("loss", run.loss), ("gradient norm", run.grad_norm)):
        known = [(step, abs(v)) for step, v in enumerate(values, 1) if v is not None and math.isfinite(v) and v]
        found = _climb(known)
        if found is not None:
            (first_step, first), (last_step, last) = found
            return Explosion(what, first, last, first_step, last_step, rows)
    return _of_parameters(rows, growth)


def _of_parameters(rows: tuple[dict[str, Any], ...], growth: Growth) -> Explosion | None:
    """A parameter that has grown a thousandfold says the same, where a normalisation bounds loss and gradients."""
    if not rows or rows[0]["factor"] < FACTOR:
        return None
    first, last = growth.span()
    return Explosion(rows[0]["grew"], rows[0]["from"], rows[0]["to"], first, last, rows)


def _climb(known: list[tuple[int, float]]) -> tuple[tuple[int, float], tuple[int, float]] | None:
    """The ends of the climb that leads to the last value: it starts at the lowest value of the unbroken rise."""
    if len(known) < 2:
        return None
    start = len(known) - 1
    while start > 0 and known[start - 1][1] < known[start][1]:
        start -= 1
    first, last = known[start], known[-1]
    least = AT_ONCE if len(known) - 1 - start < 2 else FACTOR
    return (first, last) if last[1] > least * first[1] else None
