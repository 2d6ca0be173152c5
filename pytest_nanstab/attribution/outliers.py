"""An outlier among the batches that precede an explosion: evidence, not a verdict, since many models bear outliers.

The score of a value is the robust z-score |x - median| / (1.4826 MAD) over a sample of all batches of a field; 1.4826
makes it the ordinary z-score for normal data (Leys et al. 2013, doi:10.1016/j.jesp.2013.03.013).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pytest_nanstab.watching import measure

_SAMPLED = 256  # values of each batch that enter the median
_MOST = 200_000  # values of one field kept in all
# Normal data of a million values end near 5, an exponential tail near 20: beyond this, and this far beyond every other
# batch, a value is no part of the distribution that the others show.
_FAR, _ALONE = 30.0, 5.0


@dataclass(frozen=True)
class _Extreme:
    """The smallest and the largest value of one field in one batch, with their places."""

    step: int
    low: float
    low_at: tuple[int, ...]
    high: float
    high_at: tuple[int, ...]


class _Field:
    """What is kept of one field."""

    def __init__(self) -> None:
        self.extremes: list[_Extreme] = []
        self.sample: list[Tensor] = []
        self.size = 0

    def note(self, step: int, values: Tensor) -> None:
        flat = values.reshape(-1)
        low, high = int(flat.argmin()), int(flat.argmax())
        self.extremes.append(
            _Extreme(step, flat[low].item(), _index(low, values), flat[high].item(), _index(high, values))
        )
        if self.size < _MOST:
            part = flat[:: max(1, flat.numel() // _SAMPLED)].clone()
            self.sample.append(part)
            self.size += part.numel()

    def scored(self) -> list[tuple[float, float, _Extreme, tuple[int, ...]]]:
        """(robust z-score, value, batch, place) of the farthest value of each batch; empty without a spread."""
        known = torch.cat(self.sample).double()
        median = known.median().item()
        spread = 1.4826 * (known - median).abs().median().item()
        if not spread > 0:
            return []
        farthest = [
            max((abs(each.low - median), each.low, each.low_at), (abs(each.high - median), each.high, each.high_at))
            for each in self.extremes
        ]
        return [(far / spread, value, e, at) for (far, value, at), e in zip(farthest, self.extremes, strict=True)]


def _index(flat: int, values: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, tuple(values.shape)))


class Outliers:
    """The extremes of every floating input of a training, batch by batch."""

    def __init__(self) -> None:
        self._fields: dict[str, _Field] = {}

    def note(self, step: int, named: Iterable[tuple[str, Tensor]]) -> None:
        """A step has been fed with these tensors; what was computed from parameters is no data."""
        for name, tensor in named:
            if tensor.grad_fn is not None or not tensor.is_floating_point() or not tensor.numel():
                continue
            values = measure.plain(tensor)
            if values is not None and values.dim() and bool(torch.isfinite(values).all()):
                self._fields.setdefault(name, _Field()).note(step, values.detach().cpu().float())

    def before(self, step: int) -> str | None:
        """The one batch up to `step` with a value far from those of all batches; None where several have one."""
        found = [story for name, field in self._fields.items() if (story := _story(name, field, step)) is not None]
        return max(found)[1] if found else None


def _story(name: str, field: _Field, step: int) -> tuple[float, str] | None:
    scored = sorted(field.scored(), key=lambda item: -item[0]) if len(field.extremes) > 2 else []
    if len(scored) < 2:
        return None
    (score, value, batch, place), (second, *_) = scored[:2]
    if not math.isfinite(score) or score < _FAR or score < _ALONE * second or batch.step > step:
        return None
    columns = f", column {place[-1]}" if len(place) > 1 else ""
    where = f"{name} at step {batch.step}, row {place[0]}{columns}"
    compared = f"robust z-score {score:.2g}, in the other batches at most {second:.2g}"
    return score, f"{value:.4g} in {where}: {compared}"
