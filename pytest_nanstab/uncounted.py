"""Our own work inside an example of Hypothesis is no part of the time that the user's deadline allows it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uncounted() -> Iterator[None]:
    """Take what the block lasts off the running example's time; without Hypothesis, or outside examples, do nothing."""
    began = time.perf_counter()
    try:
        yield
    finally:
        _take_off(time.perf_counter() - began)


def _take_off(seconds: float) -> None:
    # Private: where Hypothesis notes the time of its own work within a test, which it subtracts. Elsewhere all counts.
    control: Any = sys.modules.get("hypothesis.control")
    context = getattr(getattr(control, "_current_build_context", None), "value", None)
    times = getattr(getattr(context, "data", None), "_stateful_run_times", None)
    if isinstance(times, dict):
        times["nanstab"] = times.get("nanstab", 0.0) + seconds
