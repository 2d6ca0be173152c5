"""The two exceptions a check raises; both are assertion failures, so test runners call them failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_nanstab.findings import Finding


class StabilityError(AssertionError):
    """A check found the program numerically unhealthy.

    Attributes:
        findings: every finding behind the failure, the root cause first.
    """

    findings: tuple[Finding, ...]

    def __init__(self, message: str, findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)

    def retell(self, finding: Finding, told: Finding) -> None:
        """Put a finding in the place of one of these, for whoever learned more about it."""
        from pytest_nanstab.reporting.block import render

        self.findings = tuple(told if known is finding else known for known in self.findings)
        self.args = (render(self.findings), *self.args[1:])

    def __reduce__(self) -> tuple[Any, ...]:
        # The classes call themselves builtins (below), where pickle would look for them in vain.
        return _rebuild, (isinstance(self, NonFiniteError), str(self), self.findings)


class NonFiniteError(StabilityError):
    """A NaN or an infinity reached a place where it does harm: data, loss, gradient, parameter, state or output."""


def _rebuild(nonfinite: bool, message: str, findings: tuple[Finding, ...]) -> StabilityError:
    return (NonFiniteError if nonfinite else StabilityError)(message, findings)


# pytest prints the module before the class name unless it is builtins; an 80-column summary has no room for it.
StabilityError.__module__ = "builtins"
NonFiniteError.__module__ = "builtins"
