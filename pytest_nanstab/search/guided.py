"""Climbing towards an edge: batch and weights follow the gradient of the distance to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pytest_nanstab.attribution.source import shown
from pytest_nanstab.batches.build import describe
from pytest_nanstab.batches.recipe import Described
from pytest_nanstab.findings import Finding
from pytest_nanstab.search import moves
from pytest_nanstab.search.hunter import Hunter, Slopes
from pytest_nanstab.search.sites import Seen, Site, Watcher
from pytest_nanstab.search.states import State, moved, scale_of
from pytest_nanstab.suite.state import Snapshot

ROUNDS = 16  # looks at the gradient, each followed by one try
_LEAST_SHARE = 2.0**-14  # of a field's range: smaller steps are left to Newton's
WORST = 8  # elements whose distances are summed up; every second round only the nearest one counts
REACH = 32.0  # weights are moved so many times their own scale at most, as far as scaling moves them
_FIRST_REACH = 0.5
_NEWTON = 3


@dataclass(frozen=True)
class Point:
    """Where a climb stands: a batch, the weights (None: those of the state), and how far the site is from its edge."""

    described: Described
    weights: tuple[Tensor, ...] | None
    distance: float


class Climb:
    """One climb of one site, from one state and batch.

    Args:
        hunter: what tries and looks.
        site: where to.
        state: where from.
        snapshot: the same state, for moving its weights.
        with_weights: whether weights move as well.

    Attributes:
        nearest: the nearest point it has come to; None where no step came nearer than the start.
    """

    def __init__(self, hunter: Hunter, site: Site, state: State, snapshot: Snapshot, *, with_weights: bool) -> None:
        self._hunter = hunter
        self._site = site
        self._state = state
        self._snapshot = snapshot
        self._with_weights = with_weights
        self._scales = [scale_of(weight) for weight in hunter.weights] if with_weights else []
        self._steps = 0
        self.nearest: Point | None = None

    def run(self, start: Described, distance: float, rounds: int = ROUNDS) -> Finding | None:
        """Step towards the edge until something breaks, the budget ends, or no step comes closer."""
        __tracebackhide__ = True
        point = Point(start, self._weights() if self._with_weights else None, distance)
        share, reach, last = 1.0, _FIRST_REACH, None
        for number in range(rounds):
            if self._hunter.budget.is_spent or share < _LEAST_SHARE:
                break
            slopes = self._slopes(point, WORST if number % 2 == 0 else 1)
            if slopes is not None and not self._leads(slopes):
                slopes = last  # among subnormal numbers no slope is left: on in the direction that led there
            if slopes is None or not self._leads(slopes):
                return None
            last = slopes
            found, after = self._try(self._stepped(point, slopes, share, reach))
            if found is not None:
                return found
            if after.distance < point.distance:
                point = self.nearest = after
                reach *= 2
            else:
                share, reach = share / 4, reach / 4
        return self._newton(point)

    def _leads(self, slopes: Slopes) -> bool:
        """Whether there is anything to follow."""
        return bool(slopes.batch) or (self._with_weights and any(g is not None for g in slopes.weights))

    def _newton(self, point: Point) -> Finding | None:
        """Steps for exact zeros: what divides by a difference fails only there."""
        __tracebackhide__ = True
        for _ in range(_NEWTON):
            if self._hunter.budget.is_spent or self._has_no_root(point):
                return None
            slopes = self._slopes(point, 1)
            if slopes is None:
                return None
            found, after = self._try(self._rooted(point, slopes))
            if found is not None:
                return found
            if not after.distance < point.distance:
                return None
            point = after
        return None

    def _has_no_root(self, point: Point) -> bool:
        """Whether the edge is an overflow, which no exact zero leads to, or the distance is not known."""
        seen = self._hunter.near.closest.get(self._site)
        return seen is None or seen.edge.linear or not math.isfinite(point.distance)

    # -- one step ------------------------------------------------------------------------------------------------------

    def _slopes(self, point: Point, worst: int) -> Slopes | None:
        return self._hunter.slopes(self._at(point), point.described, self._site, worst)

    def _try(self, point: Point) -> tuple[Finding | None, Point]:
        __tracebackhide__ = True
        self._steps += 1
        watcher = Watcher()
        found = self._hunter.probe(self._at(point), point.described, watcher)
        seen = watcher.seen.get(self._site)
        return found, Point(point.described, point.weights, math.inf if seen is None else seen.distance)

    def _at(self, point: Point) -> State:
        if point.weights is None:
            return self._state
        steps = f"{self._steps} step{'' if self._steps == 1 else 's'}"
        words = f"weights moved towards {self._site.op} at {shown(self._site.spot)} in {steps}"
        return moved(self._hunter.weights, point.weights, self._snapshot, words)

    def _weights(self) -> tuple[Tensor, ...]:
        self._state.enter()
        return tuple(weight.detach().clone() for weight in self._hunter.weights)

    def _stepped(self, point: Point, slopes: Slopes, share: float, reach: float) -> Point:
        batch = moves.moved(self._hunter.plan, point.described.batch, slopes.batch, share)
        return Point(self._described(batch), self._moved(point, slopes.weights, reach), math.inf)

    def _moved(self, point: Point, gradients: Sequence[Tensor | None], reach: float) -> tuple[Tensor, ...] | None:
        if point.weights is None:
            return None
        moved_weights = []
        for weight, gradient, scale in zip(point.weights, gradients, self._scales, strict=True):
            if gradient is None or weight.is_complex():
                moved_weights.append(weight)
                continue
            moved_weights.append(self._within(weight - gradient.sign() * min(reach, REACH) * scale, scale))
        return tuple(moved_weights)

    def _within(self, weight: Tensor, scale: float) -> Tensor:
        """No farther than scaling would move it, and finite: what is found must be the model's fault."""
        return weight.nan_to_num(0.0).clamp(-REACH * scale, REACH * scale)

    def _rooted(self, point: Point, slopes: Slopes) -> Point:
        """A step of Newton's; with g the gradient of the logarithm of a distance, the step is g / |g|^2."""
        taken = [*slopes.batch.values()] if point.weights is None else [g for g in slopes.weights if g is not None]
        square = sum(float((g.double() ** 2).sum()) for g in taken)
        length = 1.0 / square if square > 0 else 0.0
        if point.weights is None:
            batch = moves.newton(self._hunter.plan, point.described.batch, slopes.batch, length)
            return Point(self._described(batch), None, math.inf)
        stepped = (
            weight
            if gradient is None or weight.is_complex()
            else self._within(weight - length * gradient.to(weight.dtype), scale)
            for weight, gradient, scale in zip(point.weights, slopes.weights, self._scales, strict=True)
        )
        return Point(point.described, tuple(stepped), math.inf)

    def _described(self, batch: object) -> Described:
        where = f"{self._site.op} at {shown(self._site.spot)}"
        return Described(batch, f"{describe(batch)}; found by following the gradient towards {where}")


def sites_to_climb(near: Sequence[tuple[Site, Seen]], most: int) -> list[Site]:
    """The sites nearest to their edges first, one of each line before a second of any."""
    seen_lines: set[object] = set()
    first: list[Site] = []
    rest: list[Site] = []
    for site, _ in near:
        (rest if site.spot in seen_lines else first).append(site)
        seen_lines.add(site.spot)
    return [*first, *rest][:most]
