"""A watched region: the sinks of section "where verdicts fall", judged by one state machine.

One region is active at a time; an inner one suspends the outer. The hot functions live in `hotpath`; what is here runs
when a step is due to be judged or when something is wrong.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_nanstab.attribution import local, plan
from pytest_nanstab.attribution.local import Hint
from pytest_nanstab.attribution.source import user_spot, user_traceback
from pytest_nanstab.findings import Finding, error_from
from pytest_nanstab.uncounted import uncounted
from pytest_nanstab.watching import hotpath, scaling, state, torch_private, verdicts
from pytest_nanstab.watching.counter_judge import CounterJudge
from pytest_nanstab.watching.details import Details
from pytest_nanstab.watching.gradient_judge import GradientJudge
from pytest_nanstab.watching.guarded import Guarded
from pytest_nanstab.watching.headroom import Headroom
from pytest_nanstab.watching.living import Living
from pytest_nanstab.watching.loss_judge import LossJudge
from pytest_nanstab.watching.names import Names
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.outputs import TRANSIENT, Call, OutputWatch
from pytest_nanstab.watching.patches import Patches, patch_clips
from pytest_nanstab.watching.pending import PendingLoss
from pytest_nanstab.watching.rank_judge import RankJudge
from pytest_nanstab.watching.run import Run
from pytest_nanstab.watching.state_judge import StateJudge
from pytest_nanstab.watching.telemetry import telemetry
from pytest_nanstab.watching.underflow import Underflow
from pytest_nanstab.watching.updates import Stuck, Updates

if TYPE_CHECKING:
    from pytest_nanstab.attribution.history import Made

_ACTIVE: list[Region] = []
# Sampled judging of gradients may take this share of the time, after an allowance that covers short tests whole.
_SHARE = 0.005
_ALLOWANCE_NS = 1_000_000
# Steps judged in any case: short tests must not depend on the machine's speed. Where a pass over all parameters shows
# in the time of a step, there are fewer.
_FIRST, _FIRST_LARGE, _LARGE = 20, 2, 1_000_000
_UNSEEN = 2  # the clock sees about half of what our own work costs


class Region:
    """Watches everything torch trains or evaluates between `__enter__` and `__exit__`.

    Attributes:
        run: the measurements.
        findings: the same list as `run.findings`: recorded, or recorded and raised.
        context: merged into the evidence of every finding; "batch", "steps", "seed", "precision", "device", "again".
    """

    def __init__(self, options: Options, context: Mapping[str, object] | None = None) -> None:
        self.options = options
        self.run = Run()
        self.inner = Run()  # the longest run of the watches inside, which this one sees nothing of
        self.context: dict[str, object] = dict(context or {})
        self.active = False
        self.finished = False
        # Written by the hot path.
        self.loss: float | None = None
        self.backwards = 0
        self.due = 0
        self.pending: PendingLoss | None = None
        self.alert = False  # a loss is pending, or an output was bad
        self.names = Names()
        self.losses = LossJudge(self)
        self.gradients = GradientJudge(self)
        self.state = StateJudge(self)
        self.guarded = Guarded(self)
        self.ranks = RankJudge(self)
        self.outputs = OutputWatch(self, dense=options.dense, only=options.model)
        measured = options.headroom or "min_headroom_bits" in options.limits
        self.headroom = Headroom(self.names, self._is_measured) if measured else None
        self._underflow = Underflow(self.names) if measured else None
        self.counters = CounterJudge(self) if options.dense else None
        self._updates = Updates() if options.update_ratio or "max_update_ratio" in options.limits else None
        self.stuck = Stuck() if options.track_parameters else None
        self.details = Details(self.run, self.names) if options.details else None
        self._copies: list[tuple[Tensor, Tensor]] = []
        self.tracing = plan.current()
        # A replay wants the step that broke a parameter, not the first one to notice.
        self._checks_parameters = options.check_parameters or self.tracing is not None
        self._looks_after = self._updates is not None or self.stuck is not None or self._checks_parameters
        self.measures_more = self._looks_after or self.headroom is not None  # than losses and gradient norms
        self.local_attempts = 0
        self.closure: Any = None  # what an optimizer calls to compute its loss, while that is judged
        self.constructed = Living[None]()
        self._patches = Patches()
        self._rooted = False
        self.thread = threading.get_ident()
        self.late: list[Finding] = []  # what only the end has shown
        self._elsewhere: list[Finding] = []
        self._has_enclosed = False  # a watch inside that used torch
        self.traceback: TracebackType | None = None
        self._known: set[tuple[str, str | None, str | None]] = set()
        self._started = self._paused = perf_counter_ns()
        self._own = 0

    @property
    def findings(self) -> list[Finding]:
        """Everything found, in order."""
        return self.run.findings

    @property
    def used(self) -> bool:
        """Whether torch was used at all: a module called, a backward or a step made."""
        return bool(self.outputs.seen or self.backwards or self.run.steps or self._has_enclosed)

    # -- being active ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Region:
        if _ACTIVE:
            _ACTIVE[-1]._suspend()
        _ACTIVE.append(self)
        self._resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        self.leave()
        if error is None:
            self.finish()
        elif isinstance(error, Exception):
            self.finish(quiet=True)
        else:
            self._forget()

    def leave(self) -> None:
        """Take all hooks away and give the outer region, if any, its place back."""
        self._suspend()
        if self in _ACTIVE:
            was_top = _ACTIVE[-1] is self
            _ACTIVE.remove(self)
            if was_top and _ACTIVE:
                _ACTIVE[-1]._resume()

    def _resume(self) -> None:
        self.active = True
        self._started += perf_counter_ns() - self._paused
        self._patches.attribute(torch.autograd, "backward", lambda original: hotpath.backward_of(self, original))
        patch_clips(self._patches, hotpath.clip_norm_of(self), hotpath.clip_value_of(self))
        for name, make in hotpath.scaler_patches(self).items():
            self._patches.attribute(torch.amp.GradScaler, name, make)
        for context in (torch.no_grad, torch.inference_mode):
            self._patches.attribute(context, "__enter__", hotpath.entering(self))
        self._patches.attribute(nn.Module, "train", hotpath.switching(self))
        if self.tracing is not None:  # what a step was fed with is forgotten when it is counted
            self._patches.handle(torch_private.register_step_pre_hook(self.tracing.before_counting(self)))
        self._patches.handle(torch_private.register_step_pre_hook(hotpath.step_hook_of(self)))
        if self._looks_after:
            self._patches.handle(torch_private.register_step_post_hook(hotpath.outside_graphs(self._after_step)))
        if self.headroom is not None:
            self.headroom.install()
        torch_private.hide_hooks(self._patches, self.outputs.hidden)
        torch_private.hide_in_copies(self._patches, TRANSIENT)
        self._patches.attribute(torch.optim.Optimizer, "__init__", hotpath.constructing(self))
        self.outputs.install()
        if self.tracing is not None:
            self.tracing.start(self)

    def _suspend(self) -> None:
        self.active = False
        if self.counters is not None:
            self.counters.suspend()
        if self.tracing is not None:
            self.tracing.stop()
        self.outputs.remove()
        if self.headroom is not None:
            self.headroom.remove()
        self._patches.undo()
        self._paused = perf_counter_ns()

    def norm_bounds(self) -> tuple[float, float]:
        """The gradient norms that need no second look: within the user's limits, and with squares that are finite."""
        low, high = (self.options.limit(name) for name in ("min_grad_norm", "max_grad_norm"))
        return low or 0.0, min(1e18 if high is None else high, 1e18)

    # -- reporting ---------------------------------------------------------------------------------------------------

    def behind(self, tensors: Any) -> Made | None:
        """What is known about how something bad was made; None unless operations are traced."""
        return None if self.tracing is None else self.tracing.behind(tensors)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Judge nothing for the block: what runs in it is not the user's."""
        was_active, self.active = self.active, False
        try:
            with self.outputs.at_rest():
                yield
        finally:
            self.active = was_active

    def report(self, finding: Finding, made: Made | None = None, hint: Hint | None = None) -> None:
        """Record a finding, and raise it where the region raises. Only the first non-finite one is a root cause.

        `made` is the traced operation behind what is not finite, where it is known; `hint` is what is at hand to repeat
        the computation where it is not.
        """
        __tracebackhide__ = True
        finding = self._in_context(finding)
        if finding.is_nonfinite:
            if self._rooted and (self._elsewhere or not self._raises_here()):
                return
            self._rooted = True
            if made is None or self.tracing is None:
                with uncounted():
                    finding = self._explained_here(finding, hint)
        if made is not None and self.tracing is not None:
            try:
                finding = self.tracing.told(finding, made, self)
            except Exception as error:  # noqa: BLE001 - looking meets objects of the user's, whose methods may raise
                finding = local.broken_off(finding, error)
        if self.guarded.takes(finding):
            self._rooted = False
        else:
            self.deliver(finding)

    def deliver(self, finding: Finding) -> None:
        """Record a finding that has been explained, and raise it where the region raises."""
        __tracebackhide__ = True
        self._rooted = self._rooted or finding.is_nonfinite
        known = (finding.kind, finding.module, finding.source) in self._known
        self._known.add((finding.kind, finding.module, finding.source))
        if not known:
            self.findings.append(finding)
        if self.options.keeps_traceback and self.traceback is None:
            self.traceback = user_traceback()
        if self.finished:
            return
        if self._raises_here():
            raise error_from([finding])
        if self.options.raises:
            self._elsewhere.append(finding)

    def _raises_here(self) -> bool:
        # A test does not see what is raised in its threads, and other ranks would wait for one that has left its loop.
        return self.options.raises and self.ranks.look() is None and threading.get_ident() == self.thread

    def _explained_here(self, finding: Finding, hint: Hint | None) -> Finding:
        if self.tracing is not None or not self.options.explain:
            return finding
        # Repeating what may call a collective would hang: a rerun on all ranks tells more.
        at_hand = hint is not None and (self.active or hint.frames) and self.ranks.group is None
        told = local.explained(self, finding, hint) if hint is not None and at_hand else local.advised(finding)
        if not (self.options.defers and plan.is_deferred()):
            return told
        if told.op is not None:
            plan.keep(finding, told)
        return finding

    def _in_context(self, finding: Finding) -> Finding:
        names = {} if self.options.name == "watch" else {"watch": self.options.name}
        told = {} if self.details is None else telemetry(self.run, finding)
        return replace(finding, evidence={**self.context, **names, **finding.evidence, **told})

    # -- told by the hot path ----------------------------------------------------------------------------------------

    def before_backward(self, tensors: Any, value: float) -> None:
        """A loss is about to be differentiated, and there is a reason to look at it."""
        __tracebackhide__ = True
        self.losses.before_backward(tensors, value)

    def after_backward(self) -> None:
        """A backward has run after something bad was seen."""
        self.losses.after_backward()

    def clipped(self) -> None:
        """A clip has run."""
        if self.pending is not None:
            self.losses.clipped()

    def drop_pending(self) -> None:
        """Nothing will use the gradients of a non-finite loss."""
        if self.pending is not None:
            self.losses.drop()

    def first_call(self, module: nn.Module) -> None:
        """An outermost module is about to be called."""
        self.names.add(module)
        self.ranks.look()

    def output_is_bad(self, call: Call) -> None:
        """An outermost call returned a NaN."""
        __tracebackhide__ = True
        self.losses.output_is_bad(call)

    def fused_skip(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer that unscales in its own kernel leaves the step out; read where that need not wait."""
        found = getattr(optimizer, "found_inf", None)
        if found is None or (found.is_cuda and self.run.steps + 1 < self.due):
            return False
        return scaling.fused_skip(optimizer)

    @torch_private.past_modes
    def after_scaler_step(self, optimizer: Optimizer, *, stepped: bool) -> None:
        """`scaler.step(optimizer)` returned; `stepped` tells whether the optimizer did."""
        __tracebackhide__ = True
        if stepped:
            self.gradients.scaling.attempted(skipped=False)
            return
        parameters = state.parameters_of(optimizer)
        self.losses.skipped(parameters)
        self.gradients.skipped(parameters)

    # -- the optimizer step ------------------------------------------------------------------------------------------

    def inspect(self, optimizer: Optimizer) -> None:
        """Judge the step that is about to run: pending loss, gradients, clips, limits."""
        __tracebackhide__ = True
        try:
            self._inspect(optimizer)
        finally:
            if self.counters is not None:
                self.counters.arrange()

    @torch_private.past_modes
    def _inspect(self, optimizer: Optimizer) -> None:
        __tracebackhide__ = True
        begun = perf_counter_ns()
        norm = self.state.hold(optimizer)
        self.guarded.look(optimizer, norm.parameters)
        if self.pending is not None:
            self.losses.stepping(norm.parameters)
        loss_scale = self.gradients.scaling.scale
        scale = 1.0 if loss_scale is None else scaling.fused_scale(optimizer)
        if self.details is not None:
            self.details.stepping(optimizer, norm.parameters, scale, loss_scale)
        self.gradients.judge(optimizer, norm, scale)
        self.guarded.looked()
        if self.headroom is not None:
            self._measure(self.headroom, norm.parameters, scale)
        if self.counters is not None:
            self.counters.judge(optimizer)
        self.ranks.stepping(optimizer, norm)
        if self._updates is not None:
            self._updates.remember(norm.parameters)
        if self.stuck is not None:
            self._copies = self.stuck.before(optimizer)
        self.state.judged = self.run.steps
        self._schedule(begun, _FIRST if norm.elements <= _LARGE else _FIRST_LARGE)

    def _schedule(self, begun: int, first: int) -> None:
        """Set the step that is judged next: every one when dense or among the first, else as the time budget allows."""
        if self.options.dense:
            return
        now = perf_counter_ns()
        self._own += now - begun
        spent, elapsed = self._own * _UNSEEN, now - self._started
        overdrawn = spent - _ALLOWANCE_NS - _SHARE * elapsed
        per_step = elapsed / self.run.steps
        pause = math.ceil(overdrawn / _SHARE / per_step) if overdrawn > 0 else 1
        pause = 1 if self.run.steps < first else pause
        self.due = self.run.steps + min(max(pause, 1), 1000)
        if pause > 1:
            self.outputs.sample()

    def _is_measured(self) -> bool:
        """Whether headroom is measured in the step under way."""
        return self.options.dense or self.run.steps + 1 >= self.due

    def _measure(self, headroom: Headroom, parameters: list[Tensor], scale: float) -> None:
        __tracebackhide__ = True
        if self._underflow is not None and self._underflow.is_due(self.run.steps):
            self._underflow.look([p for p in parameters if not headroom.has_arrived(p)], scale)
        headroom.step(parameters, scale)
        self._judge_headroom(headroom)

    def gradients_arrived(self, parameters: list[Tensor], scale: float) -> None:
        """A backward has left these gradients, multiplied by a loss scale, and nothing has clipped them yet."""
        if self.details is not None:
            self.details.arrived(parameters, scale)
        if self.headroom is not None:
            if self._underflow is not None and self._underflow.is_due(self.run.steps + 1):
                self._underflow.look(parameters, scale)
            self.headroom.arrived(parameters, scale)

    def _judge_headroom(self, headroom: Headroom) -> None:
        __tracebackhide__ = True
        bound, least = self.options.limits.get("min_headroom_bits"), headroom.least()
        if bound is not None and least is not None and verdicts.broken(bound, least.bits, below=True):
            self.report(verdicts.headroom(bound, least, self.run.steps, user_spot(2)))

    @torch_private.past_modes
    def _after_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        __tracebackhide__ = True
        if not self.active or id(optimizer) not in self.state.norms:
            return
        if self._updates is not None:
            self._judge_update(self._updates, optimizer)
        if self.stuck is not None:
            self.stuck.after(self._copies)
            self._copies = []
        if self._checks_parameters:
            self.state.after_step(optimizer)

    def _judge_update(self, updates: Updates, optimizer: Optimizer) -> None:
        __tracebackhide__ = True
        run = self.run
        if len(run.update_ratio) >= run.steps:
            return  # the optimizer has left this step out
        ratio, guilty = updates.largest()
        run.update_ratio += [*[None] * (run.steps - 1 - len(run.update_ratio)), ratio]
        if self.details is not None:
            self.details.stepped(optimizer, updates.ratios)
        bound = self.options.limits.get("max_update_ratio")
        if bound is not None and guilty is not None and verdicts.broken(bound, ratio):
            what = f"update ratio of {self.names.label(optimizer, guilty)}"
            self.report(verdicts.limit("max_update_ratio", bound, ratio, step=run.steps, what=what, phase="optimizer"))

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, *, quiet: bool = False, failed: bool | None = None) -> None:
        """Judge what is only known at the end; raise the first of it where the region raises, unless `quiet`.

        `failed` tells whether the watched code has raised something; without it, `quiet` does.
        Call it after the hooks are gone. Nothing of the user's is held afterwards.
        """
        __tracebackhide__ = True
        if self.finished:
            return
        self.finished = True
        before = len(self.findings)
        try:
            self._judge_end()
        finally:
            self._close_run()
            shared = self.ranks.finish(failed=quiet if failed is None else failed)
            self._forget()
        if _ACTIVE:
            _ACTIVE[-1]._enclose(self)
        self.late = list(self.findings) if shared else [*self._elsewhere, *self.findings[before:]]
        if any(finding.is_nonfinite for finding in self.findings):
            for outer in _ACTIVE:
                outer.state.disown_broken()
        if self.late and self.options.raises and not quiet:
            raise error_from(self.late)

    def _enclose(self, inner: Region) -> None:
        """A watch inside has ended."""
        self._has_enclosed = self._has_enclosed or inner.used
        if inner.options.shares is not None and inner.run.steps >= self.inner.steps:
            self.inner = inner.run

    @torch_private.past_modes
    def _judge_end(self) -> None:
        __tracebackhide__ = True
        self.guarded.close()
        self.losses.finish()
        if self.headroom is not None:
            self.headroom.finish([p for norm in self.state.norms.values() for p in getattr(norm, "parameters", ())])
            self._judge_headroom(self.headroom)
        self.state.judge_all()
        self.gradients.finish()

    def _close_run(self) -> None:
        run = self.run
        for values in (run.grad_norm, run.clipped_grad_norm, run.update_ratio):
            values.extend([None] * (run.steps - len(values)))
        if self.headroom is not None:
            run.headroom, run.left_out = self.headroom.table(), self.headroom.left_out()
            run.init_scale = {name: scale for name, scale in self.headroom.init_scale.items() if 0 < scale < math.inf}
            run.underflow = {} if self._underflow is None else self._underflow.table(self.headroom.largest_gradient())
        if self.details is not None:
            self.details.close()

    def _forget(self) -> None:
        """Drop every reference to the user's objects."""
        self._underflow = None
        self.losses.forget()
        self.outputs.forget()
        self.options = replace(self.options, model=None)
        self.state.forget()
        self.names.forget()
        self.gradients = GradientJudge(self)
        self._copies.clear()
        if self.counters is not None:
            self.counters.counters.forget()
        self._updates = Updates() if self._updates is not None else None
