"""`Run`: what a watched region measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytest_nanstab.findings import Finding


@dataclass
class ParameterHistory:
    """One parameter over the steps of a run: one entry per optimizer step, None where it took no part in it.

    Attributes:
        grad_norm: L2 norm of its unscaled gradient before clipping, also before clipping by hand.
        clipped_grad_norm: the same as the optimizer received it.
        update_ratio: ||dw|| / ||w||; 0 for a parameter that was zero.
    """

    grad_norm: list[float | None] = field(default_factory=list)
    clipped_grad_norm: list[float | None] = field(default_factory=list)
    update_ratio: list[float | None] = field(default_factory=list)


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
        headroom: for each of "loss", "activation" (outputs of modules), "gradient" and "parameter" the tensors seen, by
            name and dtype, with the distance to the dtype's largest finite number in bits.
        left_out: how many values of such a tensor were infinite, or equal to that number, and so no measurement.
        underflow: for "float16" and "bfloat16" the share of gradient values that are too small for the format, and the
            loss scales that help: `below_normal`, `below_subnormal`, `worst` (a parameter), `worst_share`, `loss_scale`
            (smallest and largest, or None). With `headroom`, at steps 1, 2, 4, 8 ...
        init_scale: the root mean square of each parameter before its first step, where it is not 0. With `headroom`.
        findings: what was found, in order.
        skipped_steps: steps that a GradScaler or a guard of the user's skipped.
        notes: what is worth knowing and fails nothing: clips that are always or never active, streaks of skipped steps.
        parameters: the history of each parameter by its dotted name; of suites and `nanstab.train`, empty otherwise.
        lr: the learning rate of the optimizer's first group at each step; like `parameters`.
        loss_scale: the loss scale at each step, None without one; like `parameters`.
        optimizer: which optimizer took the step, from 0 in order of their first steps; like `parameters`.
    """

    steps: int = 0
    loss: list[float | None] = field(default_factory=list)
    grad_norm: list[float | None] = field(default_factory=list)
    clipped_grad_norm: list[float | None] = field(default_factory=list)
    update_ratio: list[float | None] = field(default_factory=list)
    headroom: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    underflow: dict[str, dict[str, Any]] = field(default_factory=dict)
    init_scale: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    skipped_steps: int = 0
    notes: list[str] = field(default_factory=list)
    parameters: dict[str, ParameterHistory] = field(default_factory=dict)
    lr: list[float | None] = field(default_factory=list)
    loss_scale: list[float | None] = field(default_factory=list)
    optimizer: list[int | None] = field(default_factory=list)

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
