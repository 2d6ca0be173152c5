"""Judges the gradients an optimizer is about to use: finite, clipped where a clip was meant, within the limits."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from pytest_nanstab.attribution.entered import AtHand
from pytest_nanstab.attribution.local import Hint
from pytest_nanstab.attribution.origin import came_by_clip, origin_of
from pytest_nanstab.attribution.source import user_spot
from pytest_nanstab.ranks.sharding import ShardedNorm, norm_over
from pytest_nanstab.watching import measure, members, scaling, torch_private, verdicts
from pytest_nanstab.watching.clips import Clip, Clips, factor, raw_norm, without_effect
from pytest_nanstab.watching.norms import GradientNorm, global_norm, norms_of
from pytest_nanstab.watching.tally import ENOUGH, Tallies, unreached_clips

if TYPE_CHECKING:
    from pytest_nanstab.attribution.history import Made
    from pytest_nanstab.watching.region import Region

_ROUNDING = 1e-2  # of a clip's result in half precision
_SHOWN = 3  # parameters that a broken limit names


class GradientJudge:
    """Clips, loss scales and norms between two optimizer steps."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self.clips = Clips()
        self.tallies = Tallies()
        self.scaling = scaling.Scaling()
        self.early: GradientNorm | None = None  # of all parameters that have a gradient, before any optimizer is known
        # What the backward that first left something bad was computed from: others may follow before the step.
        self._broken_by: AtHand | None = None
        self._skip_spot: tuple[str, int] | None = None
        self._skip_made: Made | None = None

    def judge(self, optimizer: Optimizer, norm: GradientNorm, scale: float) -> None:
        """Judge the step that is about to run; `scale` is a loss scale that the optimizer's own kernel takes off."""
        __tracebackhide__ = True
        if scale != 1.0:
            self.clips.unscaled({id(p) for p in norm.parameters})
        clips = self.clips.take(optimizer, norm.parameters) if self.clips.calls else []
        self.tallies.taken(clips, norm.parameters, self._region.backwards)
        raw, received = self._norms(norm, clips, scale)
        if self._region.backwards == norm.looked > norm.backwards:
            raw = norm.left  # seen right after the backward: whatever has been done to it by hand is in `received`
        before, norm.backwards = norm.backwards, self._region.backwards
        self._record(raw, received)
        if received is None:
            return
        if not (math.isfinite(received) and (raw is None or math.isfinite(raw))):
            self._report_nonfinite(optimizer, norm.parameters, clips)
        self._judge_clips(clips, norm, before, received)
        if self._region.options.limits and not isinstance(norm, ShardedNorm):  # of that only a share is known here
            self._judge_limits(raw if raw is not None else received, optimizer, norm.parameters)

    def _effective(self, clip: Clip) -> bool:
        """Whether the clip has shaped what the optimizer receives, and nothing else has since."""
        if not clip.gradients or clip.unscaled_later:
            return False
        return (clip.survives or clip.backwards == self._region.backwards) and clip.untouched()

    def _norms(self, norm: GradientNorm, clips: list[Clip], scale: float) -> tuple[float | None, float | None]:
        """(raw, received) global L2 norms, unscaled; one clip over exactly these parameters needs no pass of ours."""
        effective = [clip for clip in clips if self._effective(clip)]
        if len(effective) == 1 and effective[0].kept is not None and _same(effective[0].parameters, norm.parameters):
            raw = effective[0].raw
            if raw is not None and not self._changed_since(norm, raw * effective[0].kept, scale):
                return raw, raw * effective[0].kept
        received = norm.received(self._region.backwards)
        if received is None:
            return None, None
        received /= scale
        # Clips followed by another change, as in an accumulation loop, cannot be undone: that norm is the raw one.
        return (raw_norm(effective, norm.parameters, received) if effective else received), received

    def _changed_since(self, norm: GradientNorm, expected: float, scale: float) -> bool:
        """Whether a clip was followed by another change that torch does not count, as far as that is worth a look."""
        if not (self._region.details is not None or (self._region.options.dense and norm.doubtful())):
            return False
        now = norm.measure()
        if now is not None and abs(now / scale - expected) > _ROUNDING * expected:
            norm.by_hand = True
            return True
        return False

    def _record(self, raw: float | None, received: float | None) -> None:
        run = self._region.run
        behind = [None] * (run.steps - 1 - len(run.grad_norm))
        run.grad_norm += [*behind, raw]
        run.clipped_grad_norm += [*behind, received]

    def _report_nonfinite(self, optimizer: Optimizer, parameters: list[Tensor], clips: list[Clip]) -> None:
        __tracebackhide__ = True
        region, spot = self._region, user_spot(2)
        for parameter in self._roots_first(parameters, clips):
            seen = None if parameter.grad is None else measure.extent(parameter.grad)
            if seen is not None and not seen.finite:
                name = region.names.label(optimizer, parameter)
                kind = type(optimizer).__name__
                finding = verdicts.gradient(region.run.steps, name, parameter.grad, spot, optimizer=kind)
                hint = Hint(leaves=_bad_leaves(parameters), at_hand=self._broken_by)
                region.report(finding, region.behind(parameter.grad), hint)
                return
        clip = next((c for c in clips if c.raw is not None and not math.isfinite(c.raw)), None)
        if clip is not None and clip.raw is not None:
            region.report(verdicts.norm_overflow(region.run.steps, clip.raw, clip.spot or spot))

    def _roots_first(self, parameters: list[Tensor], clips: list[Clip]) -> list[Tensor]:
        """The parameters, first those that a clip has not broken: its norm is that of all gradients together."""
        if not any(clip.raw is not None and not math.isfinite(clip.raw) for clip in clips):
            return parameters
        behind = [None if p.grad is None else self._region.behind(p.grad) for p in parameters]
        by_itself = [made is not None and not came_by_clip(origin_of(made)) for made in behind]
        ordered = sorted(zip(by_itself, parameters, strict=True), key=lambda pair: not pair[0])
        return [parameter for _, parameter in ordered]

    def _judge_clips(self, clips: list[Clip], norm: GradientNorm, before: int, received: float) -> None:
        __tracebackhide__ = True
        step = self._region.run.steps
        idle = [clip for clip in clips if without_effect(clip, self._region.backwards, before, norm.parameters)]
        scaled = [clip for clip in clips if clip.ignores_scale(self.tallies.first(clip))]
        others = [clip for clip in clips if clip not in idle and clip not in scaled and not clip.only_reads]
        done = {id(p) for clip in others for p in clip.parameters}
        for clip in idle:
            if not any(id(p) in done for p in clip.parameters):
                late = bool(clip.gradients) and self.tallies.after_step(clip)
                self._region.report(verdicts.ineffective_clip(step, clip, received, after_step=late))
        for clip in scaled:
            self._region.report(verdicts.scaled_clip(step, clip))

    def _judge_limits(self, norm: float, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        __tracebackhide__ = True
        region = self._region
        for name, below in (("max_grad_norm", False), ("min_grad_norm", True)):
            bound = region.options.limits.get(name)
            if bound is not None and verdicts.broken(bound, norm, below=below):
                what, step = "gradient norm", region.run.steps
                found = verdicts.limit(name, bound, norm, step=step, what=what, phase="backward")
                largest = self._largest(optimizer, parameters, smallest=below)
                region.report(replace(found, evidence={**found.evidence, "gradients": largest}))

    def _largest(self, optimizer: Optimizer, parameters: list[Tensor], *, smallest: bool) -> str:
        """The parameters with the largest gradients, or the smallest, as the optimizer receives them."""
        with_gradient = [p for p in parameters if p.grad is not None]
        norms = norms_of([p.grad for p in with_gradient if p.grad is not None])
        pairs = sorted(zip(norms, range(len(norms)), strict=True), reverse=not smallest)[:_SHOWN]
        return ", ".join(f"{self._region.names.label(optimizer, with_gradient[i])} {norm:.3g}" for norm, i in pairs)

    # -- told by the hot path ----------------------------------------------------------------------------------------

    @torch_private.past_modes
    def coming(self) -> None:
        """A backward is about to run, and not all gradients need be its."""
        for norm in self._known_norms():
            norm.mark()

    @torch_private.past_modes
    def arrived(self) -> None:
        """A backward has run: what it left is what clips, by function or by hand, will change."""
        region, scale, finite = self._region, self.scaling.scale or 1.0, True
        for norm in self._known_norms():
            if norm.look(region.backwards, scale):
                region.gradients_arrived(norm.parameters, scale)
                finite = finite and (norm.left is None or math.isfinite(norm.left))
        if finite:
            self._broken_by = None
        elif self._broken_by is None:
            self._broken_by = region.outputs.at_hand()

    def _known_norms(self) -> list[GradientNorm]:
        """Those of the optimizers seen so far; before the first step, that of all parameters of the modules seen."""
        here = threading.get_ident()
        held = [norm for norm in tuple(self._region.state.norms.values()) if isinstance(norm, GradientNorm)]
        if held:
            self.early = None
        elif here != self._region.thread:
            return []
        elif self.early is None or not self.early.parameters or any(p.grad is None for p in self.early.parameters):
            # One outermost module may hold another: a trainer's own module, and the network that it calls.
            parameters = {id(p): p for root in self._region.names.roots() for p in members.parameters(root)}
            self.early = norm_over([p for p in parameters.values() if p.grad is not None])
        known = held if held or self.early is None else [self.early]
        return [norm for norm in known if norm.thread == here]

    @torch_private.past_modes
    def norm_clipped(self, parameters: list[Tensor], total: Any, bound: Any, order: Any) -> None:
        """`clip_grad_norm_` has returned `total`."""
        value = measure.plain(total) if isinstance(total, Tensor) else None
        number = None if value is None else float(value)
        # Of distributed gradients only this rank's part can be read without a collective.
        kept = None if number is None or type(total) is not Tensor else factor(number, float(bound))
        raw = number if float(order) == 2 and type(total) is Tensor else None
        self._add("clip_grad_norm_", parameters, float(bound), raw, kept, active=None if kept is None else kept < 1)

    @torch_private.past_modes
    def norm_before_clip(self, parameters: list[Tensor]) -> float | None:
        """The global L2 norm that a clip by value is about to change."""
        return global_norm([p.grad for p in parameters if p.grad is not None])

    @torch_private.past_modes
    def value_clipped(self, parameters: list[Tensor], raw: float | None, bound: Any) -> None:
        """`clip_grad_value_` has run; `raw` is the L2 norm before it."""
        active = None
        if self._region.options.dense and raw is not None:
            left = self.norm_before_clip(parameters)
            active = None if left is None else left < raw
        self._add("clip_grad_value_", parameters, float(bound), raw, None, active=active)

    def _add(
        self,
        function: str,
        parameters: list[Tensor],
        bound: float,
        raw: float | None,
        kept: float | None,
        *,
        active: bool | None,
    ) -> None:
        region = self._region
        scale = self.scaling.scale if self.scaling.gradients_scaled(parameters) else None
        clip = Clip(function, parameters, bound, raw, kept, region.backwards, scale, user_spot(2))
        self.clips.add(clip)
        self.tallies.add(clip, active=active, after_step=region.run.steps > 0)

    @torch_private.past_modes
    def scaled(self, scaler: Any, given: Any, result: Any) -> None:
        """`scaler.scale(given)` has returned `result`."""
        self.scaling.scaled(scaler, given, result)

    def unscaled(self, parameters: list[Tensor]) -> None:
        """GradScaler has unscaled these gradients."""
        ids = {id(p) for p in parameters}
        self.scaling.unscaled |= ids
        self.clips.unscaled(ids)

    def skipped(self, parameters: list[Tensor]) -> None:
        """A step was left out because its gradients overflowed: normal now and then, and while the scale settles."""
        self.clips.forget(parameters)
        self.scaling.attempted(skipped=True)
        self._skip_spot = user_spot(2)
        self._skip_made = self._region.behind([p.grad for p in parameters if p.grad is not None])

    def finish(self) -> None:
        """Judge a loss scale that never recovered: none of the last `STUCK_ATTEMPTS` steps succeeded."""
        __tracebackhide__ = True
        if self.scaling.skipped_in_a_row >= scaling.STUCK_ATTEMPTS:
            self._report_stuck(self.scaling.last_scale, self._skip_spot)
        self._region.run.notes += [*self.tallies.notes(), *self.scaling.notes(), *self._unreached()]
        run = self._region.run
        if run.skipped_steps and not run.steps:
            run.notes.append(f"no step was taken: all {run.skipped_steps} were left out, for what was not finite")
        # What was raised has kept the optimizer from the step that would have shown what the clips are good for.
        stopped = self._region.options.raises and bool(self._region.findings)
        useless = self.tallies.useless() if self._region.run.steps and not stopped else None
        if useless is not None:
            self._region.report(verdicts.foreign_clip(self._region.run.steps, useless))

    def _unreached(self) -> list[str]:
        """Clips that stand in the function that steps an optimizer and were not called once."""
        return [] if self.tallies or self._region.run.steps < ENOUGH else unreached_clips(self._region.state.stepping)

    @torch_private.past_modes
    def scaler_updated(self, scaler: Any) -> None:
        """`scaler.update()` has run."""
        __tracebackhide__ = True
        self.scaling.updated(scaler)
        if self.scaling.fell_below_one:
            self.scaling.fell_below_one = False
            self._report_stuck(float(scaler.get_scale()), user_spot(2))

    def _report_stuck(self, scale: float | None, spot: tuple[str, int] | None) -> None:
        __tracebackhide__ = True
        if self.scaling.told:
            return
        self.scaling.told = True
        attempts = self.scaling.skipped_in_a_row
        self._region.report(verdicts.stuck_scale(self._region.run.steps, attempts, scale, spot), self._skip_made)


def _bad_leaves(parameters: list[Tensor]) -> list[Tensor]:
    extents = ((p, None if p.grad is None else measure.extent(p.grad)) for p in parameters)
    return [p for p, seen in extents if seen is not None and not seen.finite]


def _same(left: list[Tensor] | Any, right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
