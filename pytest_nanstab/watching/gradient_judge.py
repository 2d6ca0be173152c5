"""Judges the gradients an optimizer is about to use: finite, clipped where a clip was meant, within the limits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from pytest_nanstab.attribution.source import user_spot
from pytest_nanstab.watching import measure, scaling, verdicts
from pytest_nanstab.watching.clips import Clip, Clips, norms_at_step
from pytest_nanstab.watching.norms import GradientNorm, global_norm

if TYPE_CHECKING:
    from pytest_nanstab.watching.region import Region


class GradientJudge:
    """Clips, loss scales and norms between two optimizer steps."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self.clips = Clips()
        self.scaling = scaling.Scaling()

    def judge(self, optimizer: Optimizer, norm: GradientNorm, scale: float) -> None:
        """Judge the step that is about to run; `scale` is a loss scale that the optimizer's own kernel takes off."""
        __tracebackhide__ = True
        region = self._region
        clips = self.clips.take(norm.parameters) if self.clips.calls else []
        raw, received = self._norms(norm, clips, scale)
        self._record(raw, received)
        if not (math.isfinite(received) and (raw is None or math.isfinite(raw))):
            self._report_nonfinite(optimizer, norm.parameters, clips)
        for clip in clips:
            self._judge_clip(clip, optimizer, received)
        self.clips.stepped(optimizer, region.backwards)
        if region.options.limits:
            self._judge_limits(raw if raw is not None else received)

    def _norms(self, norm: GradientNorm, clips: list[Clip], scale: float) -> tuple[float | None, float]:
        """(raw, received) global L2 norms, unscaled; one clip over exactly these parameters needs no pass of ours."""
        effective = [clip for clip in clips if clip.backwards == self._region.backwards and clip.scale is None]
        if len(effective) == 1 and effective[0].by_norm and _same(effective[0].parameters, norm.parameters):
            raw = effective[0].raw
            if raw is not None:
                return raw, raw * effective[0].kept
        received = norm.measure() / scale
        if not effective:
            return received, received
        if len(effective) == 1 and not effective[0].by_norm and _same(effective[0].parameters, norm.parameters):
            return effective[0].raw, received
        return norms_at_step(effective, norm.parameters, received), received

    def _record(self, raw: float | None, received: float) -> None:
        run = self._region.run
        behind = [None] * (run.steps - 1 - len(run.grad_norm))
        run.grad_norm += [*behind, raw]
        run.clipped_grad_norm += [*behind, received]

    def _report_nonfinite(self, optimizer: Optimizer, parameters: list[Tensor], clips: list[Clip]) -> None:
        __tracebackhide__ = True
        region, spot = self._region, user_spot(2)
        for parameter in parameters:
            seen = None if parameter.grad is None else measure.extent(parameter.grad)
            if seen is not None and not seen.finite:
                name = region.names.label(optimizer, parameter)
                kind = type(optimizer).__name__
                region.report(verdicts.gradient(region.run.steps, name, parameter.grad, spot, optimizer=kind))
                return
        clip = next((c for c in clips if c.raw is not None and not math.isfinite(c.raw)), None)
        if clip is not None and clip.raw is not None:
            region.report(verdicts.norm_overflow(region.run.steps, clip.raw, clip.spot or spot))

    def _judge_clip(self, clip: Clip, optimizer: Optimizer, received: float) -> None:
        __tracebackhide__ = True
        region, step = self._region, self._region.run.steps
        function = "clip_grad_norm_" if clip.by_norm else "clip_grad_value_"
        if not clip.parameters:
            region.report(verdicts.empty_clip(step, function, clip.spot, clip.max_norm, received))
        elif self.clips.without_effect(clip, optimizer, region.backwards):
            region.report(verdicts.ineffective_clip(step, function, clip.spot, clip.gradients, clip.max_norm, received))
        elif clip.scale is not None and clip.unscaled_later:
            region.report(verdicts.scaled_clip(step, function, clip.spot, clip.scale, clip.max_norm))

    def _judge_limits(self, norm: float) -> None:
        __tracebackhide__ = True
        region = self._region
        for name, below in (("max_grad_norm", False), ("min_grad_norm", True)):
            bound = region.options.limits.get(name)
            if bound is not None and verdicts.broken(bound, norm, below=below):
                what, step = "gradient norm", region.run.steps
                region.report(verdicts.limit(name, bound, norm, step, what, "backward", user_spot(2)))

    # -- told by the hot path ----------------------------------------------------------------------------------------

    def clipped(self, parameters: list[Tensor], result: Any, bound: float, norm_type: float | None) -> None:
        """A clip has run; `norm_type` None is a clip by value, whose `result` is the norm before it."""
        if norm_type is None:
            raw = result
        else:
            raw = float(result) if norm_type == 2 and isinstance(result, Tensor) and result.numel() == 1 else None
        scale = self.scaling.scale if self.scaling.gradients_scaled(parameters) else None
        self.clips.add(parameters, raw, bound, norm_type is not None, (self._region.backwards, scale))

    def norm_before_clip(self, parameters: list[Tensor]) -> float:
        """The global L2 norm that a clip by value is about to change."""
        return global_norm([p.grad for p in parameters if p.grad is not None])

    def unscaled(self, parameters: list[Tensor]) -> None:
        """GradScaler has unscaled these gradients."""
        ids = {id(p) for p in parameters}
        self.scaling.unscaled |= ids
        self.clips.unscaled(ids)

    def skipped(self) -> None:
        """A step was left out because its gradients overflowed: normal now and then, not `STUCK_ATTEMPTS` in a row."""
        __tracebackhide__ = True
        self.clips.calls.clear()
        if self.scaling.attempted(skipped=True):
            self._report_stuck(self.scaling.scale)

    def scaler_updated(self, scaler: Any) -> None:
        """`scaler.update()` has run."""
        __tracebackhide__ = True
        self.scaling.updated(scaler)
        if self.scaling.fell_below_one:
            self.scaling.fell_below_one = False
            self._report_stuck(float(scaler.get_scale()))

    def _report_stuck(self, scale: float | None) -> None:
        __tracebackhide__ = True
        attempts = self.scaling.skipped_in_a_row
        self._region.report(verdicts.stuck_scale(self._region.run.steps, attempts, scale, user_spot(2)))


def _same(left: list[Tensor] | Any, right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
