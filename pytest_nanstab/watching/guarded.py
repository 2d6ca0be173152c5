"""Steps of optimizers that look at the gradients by themselves, and leave out those that are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_nanstab.watching import measure, torch_private

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_nanstab.findings import Finding
    from pytest_nanstab.watching.region import Region


class Guarded:
    """Holds what is found before such a step until it is known whether the step has used the gradients.

    A step that changes no parameter has skipped them, as a GradScaler would. One that calls the `step` of its parent,
    or of an optimizer inside it, is about to use them.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._optimizer: Any = None
        self._looking = False
        self._held: list[Finding] = []
        self._before: list[tuple[Tensor, int, Tensor]] = []
        self._handle: Any = None
        self._stale: list[Any] = []

    def look(self, optimizer: Any, parameters: Sequence[Tensor]) -> None:
        """The gradients that an optimizer is about to step with are judged from now on, until `looked`."""
        self.conclude()
        self._looking = torch_private.has_own_step(optimizer.__class__)
        self._optimizer = (optimizer, parameters) if self._looking else None

    def looked(self) -> None:
        """They have been judged."""
        self._looking = False
        if not self._held:
            self._optimizer = None

    def takes(self, finding: Finding) -> bool:
        """Whether a finding is held."""
        if not (self._looking and finding.is_nonfinite):
            return False
        if not self._held:
            optimizer, parameters = self._optimizer
            with torch_private.unseen():
                readable = [p for p in parameters if not p.is_inference()]
                # Each parameter may have a guard of its own.
                bad = [p for p in readable if p.grad is not None and _is_bad(p.grad)]
                self._before = [(p, p._version, p.detach().clone()) for p in bad or readable]
            with torch_private.numbered_apart():
                self._handle = optimizer.register_step_post_hook(self._stepped)
        self._held.append(finding)
        return True

    def settle(self) -> None:
        """The gradients are used: what was found counts."""
        __tracebackhide__ = True
        held = self._held
        self._drop()
        for finding in held:
            self._region.deliver(finding)

    @torch_private.past_modes
    def conclude(self) -> None:
        """The step has ended, perhaps by an exception: what was found counts if it has changed a parameter."""
        __tracebackhide__ = True
        if self._held:
            with torch_private.unseen():
                changed = any(p._version != version or not _alike(p, was) for p, version, was in self._before)
            if changed:
                self.settle()
            else:
                self._region.run.skipped_steps += 1
        self._drop()

    def _drop(self) -> None:
        self._held, self._before, self._optimizer = [], [], None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def close(self) -> None:
        """Nothing is watched any more."""
        __tracebackhide__ = True
        for handle in self._stale:
            handle.remove()
        self._stale.clear()
        self.conclude()

    def _stepped(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        __tracebackhide__ = True
        handle = self._handle
        if handle is not None and next(reversed(optimizer._optimizer_step_post_hooks)) != handle.id:
            self._handle = None  # torch goes on with the hooks behind this one, so it stays until then
            self._stale.append(handle)
        self.conclude()


def _is_bad(gradient: Tensor) -> bool:
    seen = measure.extent(gradient)
    return seen is not None and not seen.finite


def _alike(parameter: Tensor, before: Tensor) -> bool:
    """Whether a parameter holds the same bits, also where it was written to behind torch's back (`.data`)."""
    return parameter.shape == before.shape and bool(
        ((parameter == before) | (parameter.isnan() & before.isnan())).all()
    )
