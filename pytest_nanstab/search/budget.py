"""How much a search may cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Budget:
    """How many evaluations and seconds a search may take; an evaluation is a training step, or a look at gradients."""

    evaluations: int | None
    seconds: float
    used: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def is_spent(self) -> bool:
        """Whether one of the two is used up; the first evaluation is always granted."""
        if self.evaluations is not None and self.used >= self.evaluations:
            return True
        return self.used > 0 and self.elapsed > self.seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.started
