"""The states of a model that batches are tried on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_nanstab.suite.state import Snapshot

# Zero-initialised weights have no scale of their own; this is that of a bias after a few steps.
_LEAST_SCALE = 0.1


@dataclass(frozen=True)
class State:
    """A state worth trying.

    Attributes:
        grade: how findings call it, one of `config.GRADES`.
        enter: puts the model there.
        words: what a reader should know beyond the grade: "fails from 4 times the trained weights".
        where: the same in the fewest words, for a finding's first line: " at 4x weights".
        is_reached: whether training itself passes through it, so that even growth alone counts there.
    """

    grade: str
    enter: Callable[[], None]
    words: str = ""
    where: str = ""
    is_reached: bool = True


def scaled(weights: Sequence[Tensor], snapshot: Snapshot, factor: float) -> State:
    """All weights of a snapshot multiplied."""

    def enter() -> None:
        snapshot.restore()
        with torch.no_grad():
            for weight in weights:
                weight.mul_(factor)

    words, where = f"fails from {factor:g} times the trained weights", f" at {factor:g}x weights"
    return State("scaled weights", enter, words, where, is_reached=False)


def zeroed(weight: Tensor, name: str, snapshot: Snapshot) -> State:
    """One weight tensor of a snapshot set to zero."""

    def enter() -> None:
        snapshot.restore()
        with torch.no_grad():
            weight.zero_()

    return State("zeroed weights", enter, f"{name} set to zero", " with a zeroed weight", is_reached=False)


def moved(weights: Sequence[Tensor], values: Sequence[Tensor], snapshot: Snapshot, words: str) -> State:
    """The weights of a snapshot replaced."""

    def enter() -> None:
        snapshot.restore()
        with torch.no_grad():
            for weight, value in zip(weights, values, strict=True):
                weight.copy_(value)

    return State("adversarial training", enter, words, " at moved weights", is_reached=False)


def scale_of(weight: Tensor) -> float:
    """The magnitude by which steps of a weight are measured."""
    largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
    return largest if largest > 0 else _LEAST_SCALE
