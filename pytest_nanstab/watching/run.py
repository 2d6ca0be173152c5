"""`Run`: what a watched region measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytest_nanstab.findings import Finding


@dataclass
class Run:
    """The measurements of one watched region.

    The lists have one entry per optimizer step, in order of stepping when there are several optimizers. What was not
    measured at a step (it was not asked for, or the step was not sampled) is None.

    Attributes:
        steps: optimizer steps done.
        loss: the last unscaled loss given to `backward()` before the step.
        grad_norm: global L2 norm of the optimizer's unscaled gradients before clipping.
        clipped_grad_norm: the same as the optimizer received them.
        update_ratio: the largest ||dw|| / ||w|| of any parameter.
        headroom: for each of "activation", "gradient" and "parameter" the tensors seen, by name and dtype, with the
            distance to the dtype's largest finite number in bits.
        findings: what was found, in order.
        skipped_steps: steps that a GradScaler or a guard of the user's skipped.
    """

    steps: int = 0
    loss: list[float | None] = field(default_factory=list)
    grad_norm: list[float | None] = field(default_factory=list)
    clipped_grad_norm: list[float | None] = field(default_factory=list)
    update_ratio: list[float | None] = field(default_factory=list)
    headroom: dict[str, dict[str, float]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    skipped_steps: int = 0

    def __repr__(self) -> str:
        loss = "" if not self.loss or self.loss[-1] is None else f", loss {self.loss[0]:.4g} -> {self.loss[-1]:.4g}"
        skipped = f", {self.skipped_steps} skipped" if self.skipped_steps else ""
        return f"<Run: {self.steps} steps{loss}{skipped}, {len(self.findings)} findings>"

    def as_dict(self) -> dict[str, Any]:
        """The lists of the JSON report."""
        return {
            "steps": self.steps,
            "loss": list(self.loss),
            "grad_norm": list(self.grad_norm),
            "clipped_grad_norm": list(self.clipped_grad_norm),
            "update_ratio": list(self.update_ratio),
        }
