"""Where a hyperparameter was set to something that is not finite: only during a replay."""

from __future__ import annotations

import math
from typing import Any

from pytest_nanstab.attribution.places import place_of_call


class WatchedGroup(dict[str, Any]):
    """A parameter group that remembers the user's line at which one of its numbers became NaN or infinite.

    Where another library sets it, the user's line is only the one that started a whole training: that says nothing.
    """

    set_at: tuple[str, int] | None = None

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, float) and not math.isfinite(value) and self.set_at is None:
            place, _ = place_of_call()
            self.set_at = place.spot if place.library is None else None
        super().__setitem__(key, value)


def watch_groups(optimizer: Any) -> None:
    """Put groups that remember in place of an optimizer's own."""
    optimizer.param_groups[:] = [WatchedGroup(group) for group in optimizer.param_groups]


def bad_rate_set_at(optimizer: Any) -> tuple[str, int] | None:
    """The user's line at which a hyperparameter of the optimizer stopped being finite."""
    groups = getattr(optimizer, "param_groups", ())
    return next((group.set_at for group in groups if isinstance(group, WatchedGroup) and group.set_at), None)
