"""What half precision would make of the small end of the gradients: shares that underflow, loss scales that help."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pytest_nanstab.watching import measure, torch_private
from pytest_nanstab.watching.headroom import LARGEST
from pytest_nanstab.watching.names import Names

# The exponents of the smallest normal number (torch.finfo.smallest_normal) and of the smallest subnormal one
# (smallest_normal * eps): IEEE 754-2019 for float16.
_FORMATS = {torch.float16: (-14, -24), torch.bfloat16: (-126, -133)}
# How many values have an exponent, as `torch.frexp` counts: 2**(e - 1) <= |x| < 2**e.
_Counts: TypeAlias = "dict[int, float]"
_SAMPLED = 4096  # values of one gradient: shares are told to a percent
# A value so far below the largest of its parameter is rounding noise, and so is a parameter so far below the largest of
# all: a bias in front of a batch norm, that of the keys of a softmax, packed with others or by itself.
_NOISE_BITS = 20
_LOSS = 0.01  # what a loss scale may leave below the smallest subnormal number


class Underflow:
    """The distribution of gradient magnitudes over powers of two, by parameter, at steps 1, 2, 4, 8 ...

    At most 4096 evenly spread values of each gradient are looked at; zeros count for nothing, nor does what is 20 bits
    below the largest of its parameter, or a parameter whose largest is 20 bits below the largest of all.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._counts: dict[str, _Counts] = {}

    @staticmethod
    def is_due(step: int) -> bool:
        """Whether a step is looked at: distributions drift slowly, and looking costs."""
        return step & (step - 1) == 0

    def look(self, parameters: Iterable[Tensor], scale: float) -> None:
        """Look at gradients as a backward has left them; `scale` multiplies them."""
        with torch_private.unseen():
            for parameter in parameters:
                values = None if parameter.grad is None else measure.plain(parameter.grad)
                if values is not None:
                    self._add(self._names.path(parameter), values, scale)

    def _add(self, name: str, values: Tensor, scale: float) -> None:
        flat = values.reshape(-1)
        sample = flat[:: math.ceil(flat.numel() / _SAMPLED)].double() / scale
        sizes = sample.abs()[torch.isfinite(sample)].cpu()
        measured = sizes[sizes > (sizes.max() if sizes.numel() else 0) * 2.0**-_NOISE_BITS]
        exponents, numbers = torch.unique(torch.frexp(measured).exponent, return_counts=True)
        counts, weight = self._counts.setdefault(name, {}), flat.numel() / sample.numel()
        for exponent, number in zip(exponents.tolist(), numbers.tolist(), strict=True):
            counts[exponent] = counts.get(exponent, 0.0) + number * weight

    @torch_private.past_modes
    def table(self, largest: float) -> dict[str, dict[str, Any]]:
        """For "float16" and "bfloat16" what would be lost; empty when no gradient had a value.

        Args:
            largest: the largest magnitude of any gradient.

        Returns:
            `below_normal` and `below_subnormal`: shares of the values that are not 0 under the smallest normal and the
            smallest subnormal number; `worst` and `worst_share`: the parameter with the largest share of the latter;
            `loss_scale`: the smallest and the largest power of two that leaves at most 1 % of the values below the
            smallest subnormal number and lets none overflow, None when there is none.
        """
        counts = self._above_noise()
        if not counts or not largest > 0:
            return {}
        return {
            str(dtype).removeprefix("torch."): {
                **_losses(counts, *exponents),
                "loss_scale": _scales(counts, exponents[1], math.log2(LARGEST[dtype]) - math.log2(largest)),
            }
            for dtype, exponents in _FORMATS.items()
        }

    def _above_noise(self) -> dict[str, _Counts]:
        tops = {name: max(counts) for name, counts in self._counts.items() if counts}
        least = max(tops.values(), default=0) - _NOISE_BITS
        return {name: self._counts[name] for name, top in tops.items() if top >= least}


def _total(counts: dict[str, _Counts]) -> _Counts:
    total: _Counts = {}
    for parts in counts.values():
        for exponent, count in parts.items():
            total[exponent] = total.get(exponent, 0.0) + count
    return total


def _losses(counts: dict[str, _Counts], normal: int, subnormal: int) -> dict[str, Any]:
    total = _total(counts)
    shares = {name: _below(count, subnormal) for name, count in counts.items()}
    worst = max(shares, key=lambda name: shares[name])
    return {
        "below_normal": _below(total, normal),
        "below_subnormal": _below(total, subnormal),
        "worst": worst,
        "worst_share": shares[worst],
    }


def _below(counts: _Counts, exponent: int) -> float:
    """The share of values below 2**exponent."""
    return sum(count for size, count in counts.items() if size <= exponent) / sum(counts.values())


def _scales(counts: dict[str, _Counts], subnormal: int, room: float) -> list[float] | None:
    total = _total(counts)
    smallest = min(size for size in total if _below(total, size) > _LOSS)  # values from 2**(smallest - 1) on are kept
    low, high = max(0, subnormal - smallest + 1), min(math.floor(room), 127)  # a scale is a float32 itself
    return [2.0**low, 2.0**high] if low <= high else None
