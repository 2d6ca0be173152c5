"""How much a search may cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pytest_nanstab.progress import Tell


@dataclass
class Budget:
    """How many evaluations and seconds a search may take; an evaluation is a training step, or a look at gradients.

    Attributes:
        tell: told at each evaluation how much is used up; None where nobody wants to know.
    """

    evaluations: int | None
    seconds: float
    used: int = 0
    started: float = field(default_factory=time.monotonic)
    tell: Tell | None = None

    @property
    def is_spent(self) -> bool:
        """Whether one of the two is used up; the first evaluation is always granted."""
        if self.evaluations is not None and self.used >= self.evaluations:
            return True
        return self.used > 0 and self.elapsed > self.seconds

    @property
    def words(self) -> str:
        """What `tell` is told: a format."""
        most = "" if self.evaluations is None else f" of {self.evaluations}"
        return f"{{:.0f}} of {self.seconds:g} s, {{}}{most} evaluations"

    def spend(self, evaluations: int = 1) -> None:
        """Use up some more."""
        self.used += evaluations
        if self.tell is not None:
            self.tell(self.elapsed, self.used)

    @property
    def elapsed(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.started
