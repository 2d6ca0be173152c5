"""Judges what comes out: the loss given to `backward()`, and the outputs of outermost module calls.

In training the loss decides: a NaN in an output counts when it reaches one. An output that no loss was computed from is
judged by itself.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_nanstab.attribution.local import Hint, user_frames
from pytest_nanstab.attribution.source import user_spot
from pytest_nanstab.watching import members, state, torch_private, verdicts
from pytest_nanstab.watching.outputs import Call
from pytest_nanstab.watching.patches import Patches
from pytest_nanstab.watching.pending import PendingLoss, leaves_of

if TYPE_CHECKING:
    from pytest_nanstab.watching.region import Region


class LossJudge:
    """Non-finite losses and outputs, from where they are seen until it is known whether anything used them."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._call: Call | None = None  # the first bad output of the step to come
        self._call_step = 0
        self._evaluated: Call | None = None  # a bad output in eval mode, with a graph, that no loss was computed from
        self._clearing = Patches()

    # -- the loss ----------------------------------------------------------------------------------------------------

    @torch_private.past_modes
    def before_backward(self, tensors: Any, value: float) -> None:
        """A loss is about to be differentiated, and it is not finite, or bounded, or something bad was seen before."""
        __tracebackhide__ = True
        region = self._region
        pending = region.pending
        if pending is not None and pending.may_be_judged and pending.discarded(set(region.state.owned())):
            self._settle_pending(pending)
        if not math.isfinite(value):
            if region.pending is None:
                self._begin(tensors, value)
            return
        if region.pending is None and self._call is not None:
            self._settle(self._call, tensors)
        bound = region.options.limits.get("max_loss")
        if bound is not None and verdicts.broken(bound, abs(value)):
            step = region.run.steps + 1
            region.report(verdicts.limit("max_loss", bound, abs(value), step=step, what="|loss|", phase="forward"))

    def _begin(self, tensors: Any, value: float) -> None:
        region = self._region
        # What reentrant checkpoints hide from the graph is found among the parameters known otherwise.
        at_home = threading.get_ident() == region.thread
        hidden = [p for root in region.names.roots() for p in members.parameters(root)] if at_home else []
        others = region.state.of_other_threads()
        known = [p for p in (*hidden, *region.state.owned().values()) if id(p) not in others]
        candidates = [*leaves_of(tensors), *known]
        region.pending = pending = PendingLoss(region.run.steps + 1, value, user_spot(2), candidates)
        pending.backwards = region.backwards + 1
        pending.batch = region.context.get("batch")
        pending.data = region.outputs.bad_data()
        pending.made = region.behind(tensors)
        pending.after_broken = any(not state.is_finite(c) for c in {id(c): c for c in candidates}.values())
        pending.frames = list(user_frames())
        pending.at_hand = region.outputs.at_hand()
        pending.watch_clearing(self._clearing)
        region.alert = True

    def _settle_pending(self, pending: PendingLoss) -> None:
        """The gradients of a non-finite loss are gone: left out, or used by an update written by hand before."""
        __tracebackhide__ = True
        if pending.broke_parameters():
            self._report_by_hand(pending)
        else:
            self._discard()

    def _report_by_hand(self, pending: PendingLoss) -> None:
        """Report a loss that an update written by hand has used; without an optimizer each backward is a step."""
        __tracebackhide__ = True
        if not self._region.run.steps:
            pending.step = pending.backwards
        # The parameters are broken already: nothing computed from them now is what was computed then.
        self._report(pending, None)

    def _settle(self, call: Call, loss: Any) -> None:
        """A finite loss comes after a bad output: it absorbed the NaN, or was computed from something else."""
        if not call.feeds(loss) and not call.module.training and self._evaluated is None:
            self._evaluated = call
        # A batch in training mode that no loss was computed from was left out by the loop.
        self._call = None
        self._region.alert = False

    @torch_private.past_modes
    def after_backward(self) -> None:
        """A backward has run, perhaps while a non-finite loss is pending."""
        pending = self._region.pending
        if pending is not None and pending.thread == threading.get_ident():
            pending.backward_done()

    @torch_private.past_modes
    def clipped(self) -> None:
        """A clip has run, perhaps while a non-finite loss is pending."""
        if self._region.pending is not None:
            self._region.pending.clipped()

    def drop(self) -> None:
        """Forget a pending loss: nothing will use its gradients."""
        self._clearing.undo()
        self._region.pending = self._call = None
        self._region.alert = False

    def _discard(self) -> None:
        self.drop()
        self._region.run.skipped_steps += 1

    def stepping(self, parameters: list[Tensor]) -> None:
        """An optimizer is about to step over these parameters while a loss is pending."""
        __tracebackhide__ = True
        pending = self._region.pending
        used = None if pending is None else pending.used_by(parameters)
        if pending is not None and used:
            self._report(pending, _hint(pending))
        elif used is False:
            self._discard()

    def skipped(self, parameters: list[Tensor]) -> None:
        """A step over these parameters was left out."""
        pending = self._region.pending
        if pending is not None and pending.used_by(parameters) is not None:
            self.drop()
        self._region.run.skipped_steps += 1

    def _report(self, pending: PendingLoss, hint: Hint | None) -> None:
        """The root of a non-finite loss: a parameter broken before, the data, or the forward pass."""
        __tracebackhide__ = True
        region, call, name = self._region, self._call, None
        self.drop()
        broken = region.state.broken(pending.step - 1) if region.run.steps and pending.after_broken else None
        if broken is not None:
            region.report(broken, pending.made)
            return
        if call is not None and self._call_step == pending.step:
            name = verdicts.display_name(call.module)
            if call.input_path is not None and not call.input_computed:
                spot = call.spot or pending.spot
                finding = verdicts.input_of_step(pending, name, call.input_path, call.input_facts, spot)
                made = region.behind([call.args, call.kwargs])
                region.report(finding, made or pending.made, hint)
                return
        elif pending.data is not None:
            field, name, facts = pending.data
            finding = verdicts.input_of_step(pending, name, field, facts, pending.spot)
            made = region.behind([call[1:3] for call in region.outputs.recent.latest()])
            region.report(finding, made or pending.made, hint)
            return
        # Without a driver that counts them, a batch is what one backward was called for: told where data are to blame.
        extra = {"batch": pending.batch} if pending.batch is not None else {"backward": pending.backwards}
        region.report(verdicts.loss(pending, name, **extra), pending.made, hint)

    # -- outputs -----------------------------------------------------------------------------------------------------

    def output_is_bad(self, call: Call) -> None:
        """An outermost call returned a NaN."""
        __tracebackhide__ = True
        call.made = self._region.behind(call.take_output())
        if not call.in_graph:
            self._report_output(call)
        elif self._call is None or self._call_step != self._region.run.steps + 1:
            self._call, self._call_step = call, self._region.run.steps + 1
            self._region.alert = True

    def _report_output(self, call: Call) -> None:
        __tracebackhide__ = True
        region = self._region
        if "output" in region.options.allow_nonfinite:
            return
        carried = state.bad_in_module(call.module)
        steps = region.run.steps
        if carried is not None:
            what, name, tensor = carried
            made = region.behind(tensor)
            if made is None and region.tracing is not None:  # at the end operations are traced no more
                made = region.tracing.behind_at_end(tensor)
            if call.is_meant and not (region.options.dense or steps or region.backwards):
                return  # nothing was trained, and the test's own code speaks of NaN or infinity
            if what == "buffer":
                region.report(verdicts.buffer(steps, name, tensor, call.spot, "eval"), made)
            else:
                region.report(region.state.carried(steps, tensor, name, call.spot), made)
        elif call.input_path is None:
            hint = Hint(call=(call.module, call.args, call.kwargs))
            region.report(verdicts.output(call, verdicts.display_name(call.module), steps), call.made, hint)

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Judge what nothing has used or discarded."""
        __tracebackhide__ = True
        pending, call, known = self._region.pending, self._call, set(self._region.state.owned())
        if pending is not None:
            if not pending.discarded(known):
                self._finish_pending(pending, call, known)
            elif pending.broke_parameters():
                self._report_by_hand(pending)
        elif call is not None and not (call.module.training and any(id(p) in known for p in call.module.parameters())):
            self._report_output(call)
        if self._evaluated is not None:
            self._report_output(self._evaluated)

    def _finish_pending(self, pending: PendingLoss, call: Call | None, known: set[int]) -> None:
        """No step used the loss: a guard left it out if the loop steps otherwise, or has looked at a bad norm."""
        __tracebackhide__ = True
        leaves = {id(leaf) for leaf in pending.leaves}
        if leaves & known or self._region.gradients.clips.saw_nonfinite(leaves):
            self._region.run.skipped_steps += 1
        # Bad data is a finding only when a step used it.
        elif pending.data is None and (call is None or call.input_path is None or call.input_computed):
            self._report_unused(pending)

    def _report_unused(self, pending: PendingLoss) -> None:
        """The mean of an empty batch is NaN, its gradients are 0: a test that looks at gradients alone may want it."""
        __tracebackhide__ = True
        if self._region.options.dense or self._region.run.steps or not pending.left_finite():
            self._report(pending, _hint(pending))

    def forget(self) -> None:
        """Drop every reference to the user's objects."""
        self.drop()
        self._evaluated = None


def _hint(pending: PendingLoss) -> Hint:
    """What was at hand when the loss was differentiated: by the step, other batches may have been."""
    return Hint(spot=pending.spot, frames=pending.frames, at_hand=pending.at_hand)
