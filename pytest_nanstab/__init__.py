"""pytest-nanstab: numerical-stability regression tests for PyTorch models.

Importing this package imports neither torch nor numpy nor hypothesis; the names below load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_nanstab.checks.data import assert_finite_batches as assert_finite_batches
    from pytest_nanstab.checks.finite import assert_finite as assert_finite
    from pytest_nanstab.checks.init_scale import assert_init_scale as assert_init_scale
    from pytest_nanstab.checks.pipelines import assert_handles_nonfinite as assert_handles_nonfinite
    from pytest_nanstab.errors import NonFiniteError as NonFiniteError
    from pytest_nanstab.errors import StabilityError as StabilityError
    from pytest_nanstab.findings import Finding as Finding
    from pytest_nanstab.suite.decorator import stability_suite as stability_suite
    from pytest_nanstab.suite.setup import TrainingSetup as TrainingSetup
    from pytest_nanstab.watching.api import watch as watch
    from pytest_nanstab.watching.run import Run as Run

_HOMES = {
    "Finding": "findings",
    "NonFiniteError": "errors",
    "Run": "watching.run",
    "StabilityError": "errors",
    "TrainingSetup": "suite.setup",
    "assert_finite": "checks.finite",
    "assert_finite_batches": "checks.data",
    "assert_handles_nonfinite": "checks.pipelines",
    "assert_init_scale": "checks.init_scale",
    "stability_suite": "suite.decorator",
    "watch": "watching.api",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605 - the one list of public names is the table above


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "strategies"]
