"""What a step changes: update ratios, and parameters that no step ever changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pytest_nanstab.ranks.sharding import local
from pytest_nanstab.watching import measure, torch_private

# A parameter is stuck when this many steps with a gradient and a learning rate changed none of its bits.
STUCK_STEPS = 10
# A gradient of so few eps of the largest one is what rounding leaves of zero, as at a bias in front of a batch norm,
# which cancels it (measured there: up to 2.5 eps, in float64 to float16).
NOISE = 4.0
# ... and one of so little of the largest is a branch that was made small on purpose, such as one under a layer scale of
# 1e-6 (Touvron et al. 2021, "Going deeper with Image Transformers"): what depth makes so small is told as that.
SMALL = 1e-5


class Updates:
    """Copies of an optimizer's parameters from before a step, compared with what the step left.

    The copies are reused from step to step: a fresh copy of a large parameter costs more than the comparison.

    Attributes:
        ratios: ||dw|| / ||w|| of each parameter that had a gradient at the last step.
    """

    def __init__(self) -> None:
        self._copies: dict[int, Tensor] = {}
        self._before: list[tuple[Tensor, Tensor]] = []
        self.ratios: list[tuple[Tensor, float]] = []

    def remember(self, parameters: Sequence[Tensor]) -> None:
        """Copy the parameters that the coming step may change."""
        self._before = [(p, self._copy(p)) for p in parameters if p.grad is not None]

    def _copy(self, parameter: Tensor) -> Tensor:
        copy, now = self._copies.get(id(parameter)), local(parameter)
        if copy is None or copy.shape != now.shape or copy.dtype != now.dtype:
            copy = self._copies[id(parameter)] = now.clone()
        return copy.copy_(now)

    def largest(self) -> tuple[float, Tensor | None]:
        """The largest ||dw|| / ||w|| (w before the step) and its parameter; parameters that were zero do not count."""
        worst, guilty = 0.0, None
        self.ratios = []
        with torch_private.unseen():
            for parameter, before in self._before:
                size = _norm(before)
                # The copy is not needed any more: the difference is written into it, without a temporary.
                ratio = _norm(before.sub_(local(parameter))) / size if size > 0 else 0.0
                self.ratios.append((parameter, ratio))
                if not ratio <= worst:
                    worst, guilty = ratio, parameter
                if math.isnan(worst):
                    break
        self._before = []
        return worst, guilty


def _norm(tensor: Tensor) -> float:
    values = measure.plain(tensor)
    if values is None:
        return 0.0
    return float(torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float32)))


class Stuck:
    """Counts, for each parameter, the steps that had a gradient and a rate and changed nothing."""

    def __init__(self) -> None:
        self._marks: dict[int, tuple[Tensor, int]] = {}  # by id; the parameter is kept, so its id stays its own
        self._still: dict[int, tuple[int, int]] = {}  # steps without change up to now, and all steps
        self._put_back: dict[int, tuple[Tensor, int]] = {}
        self._last: dict[int, Tensor] = {}
        self._stepped: set[int] = set()

    def before(self, optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
        """Copies of the parameters that this step should change."""
        moving: list[tuple[Tensor, float]] = []
        for group in optimizer.param_groups:
            if float(group.get("lr", 1.0)) > 0:
                moving += [(p, _largest(p.grad)) for p in group["params"] if p.grad is not None]
        top = max((size for _, size in moving), default=0.0)
        dense = [(p, size) for p, size in moving if p.layout is torch.strided]
        copies = [(p, local(p).clone()) for p, size in dense if size > _least(p.dtype) * top]
        for parameter, copy in copies:
            self._compare(parameter, copy)
        return copies

    def _compare(self, parameter: Tensor, copy: Tensor) -> None:
        """Count the steps that changed a parameter which is as it was before, all the same."""
        key, last = id(parameter), self._last.get(id(parameter))
        if last is not None and key in self._stepped:
            with torch_private.unseen():
                same = torch.equal(last, copy)
            _, count = self._put_back.get(key, (parameter, 0))
            self._put_back[key] = (parameter, count + 1 if same and count >= 0 else -1)
        self._last[key] = copy

    def after(self, copies: list[tuple[Tensor, Tensor]]) -> None:
        """Compare the parameters with their copies from before the step."""
        for parameter, before in copies:
            with torch_private.unseen():
                same = torch.equal(before, local(parameter))
            _, count = self._marks.get(id(parameter), (parameter, 0))
            # -1 marks a parameter that moved once: it is not stuck, whatever comes.
            self._marks[id(parameter)] = (parameter, count + 1 if same and count >= 0 else -1)
            still, steps = self._still.get(id(parameter), (0, 0))
            self._still[id(parameter)] = (still + 1 if same else 0, steps + 1)
            if not same:
                self._stepped.add(id(parameter))

    def found(self) -> list[Tensor]:
        """The parameters that never moved over at least `STUCK_STEPS` steps that should have moved them, or not any
        more: over so many at the end, which are half of all of them or more."""
        return [
            parameter
            for key, (parameter, count) in self._marks.items()
            if count >= STUCK_STEPS or _stopped(*self._still[key])
        ]

    def put_back(self) -> list[Tensor]:
        """The parameters that at least `STUCK_STEPS` steps changed and something restored each time."""
        return [parameter for parameter, count in self._put_back.values() if count >= STUCK_STEPS - 1]


def _least(dtype: torch.dtype) -> float:
    return max(NOISE * torch.finfo(dtype).eps, SMALL)


def _stopped(still: int, steps: int) -> bool:
    return still >= STUCK_STEPS and 2 * still >= steps


def _largest(gradient: Tensor) -> float:
    """The largest |value|; 0 for a gradient that is not finite, or has no floating values."""
    seen = measure.extent(gradient)
    return seen.largest if seen is not None and seen.finite else 0.0


def log2_ratio(limit: float, measured: float) -> float | None:
    """Bits between a limit and a measurement; None where one of them has no logarithm."""
    if not (limit > 0 and measured > 0 and math.isfinite(limit) and math.isfinite(measured)):
        return None
    return math.log2(limit / measured)
