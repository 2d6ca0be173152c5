"""What a region is asked to watch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_nanstab.config import Limit

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Options:
    """How one region watches.

    Attributes:
        name: shown in findings when it is not the default.
        raises: raise at the sink; otherwise findings are only recorded.
        dense: judge gradients and outermost outputs at every step; otherwise sample them under a time budget.
        limits: the user's bounds; each is judged at every step.
        allow_nonfinite: sinks that may hold NaN; "output" is the only one.
        model: judge only this model's outermost outputs; None judges all modules.
        headroom: measure the headroom of outputs, losses, gradients and parameters at every judged step.
        update_ratio: measure ||dw|| / ||w|| at every step.
        check_parameters: judge parameters, buffers and optimizer state after every step, not only at the end.
        details: record every parameter's norms, rates and loss scales of every step.
        track_parameters: find parameters that no step changes (suites).
        explain: repeat a failing computation on the spot to name its operation.
        defers: leave that to a rerun, where there will be one.
        shares: under which name findings are exchanged with other ranks at the end, where there are several; None keeps
            them here.
        keeps_traceback: keep the user's frames at the first finding, for a debugger.
    """

    name: str = "watch"
    raises: bool = True
    dense: bool = True
    limits: Mapping[str, Limit] = field(default_factory=dict)
    allow_nonfinite: frozenset[str] = frozenset()
    model: nn.Module | None = None
    headroom: bool = False
    update_ratio: bool = False
    check_parameters: bool = False
    track_parameters: bool = False
    details: bool = False
    explain: bool = True
    defers: bool = False
    shares: str | None = None
    keeps_traceback: bool = False

    def limit(self, name: str) -> float | None:
        """The number of a limit, or None where the user states none."""
        found = self.limits.get(name)
        return None if found is None else found.value
