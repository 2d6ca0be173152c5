"""The judge of counters: one that seems to have stopped is watched for some steps, and a lost addition proves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from pytest_nanstab.attribution.lost import Lost, LostIntegers
from pytest_nanstab.watching import torch_private, verdicts
from pytest_nanstab.watching.counters import Counters, Stopped

if TYPE_CHECKING:
    from pytest_nanstab.watching.region import Region


class CounterJudge:
    """Looks at the counters of a region, and proves what it suspects.

    Attributes:
        counters: their lives so far.
    """

    def __init__(self, region: Region) -> None:
        self.counters = Counters(region.names)
        self._region = region
        self._suspects: list[Stopped] = []
        self._proof: LostIntegers | None = None
        self._wanted: LostIntegers | None = None

    def judge(self, optimizer: Optimizer) -> None:
        """Look before a step: report what is proved, and note what is to be proved."""
        __tracebackhide__ = True
        step = self._region.run.steps
        proved = [(stopped, lost) for stopped in self._suspects if (lost := self._proved(stopped)) is not None]
        done = [stopped for stopped, _ in proved]
        self._suspects = [stopped for stopped in self._suspects if stopped not in done and stopped.is_awaited()]
        new = self.counters.look(step, optimizer)
        self._suspects += new
        if new:
            held = [tensor for stopped in self._suspects if (tensor := stopped.tensor()) is not None]
            self._wanted = LostIntegers(held, passes=False)
        elif not self._suspects:
            self._wanted = None
        if self._suspects:
            self.counters.active.append("the steps that prove it")
        for stopped, lost in proved:
            self._region.report(verdicts.stopped_counter(step, stopped, lost.spot))

    def _proved(self, stopped: Stopped) -> Lost | None:
        tensor = stopped.tensor()
        return None if tensor is None or self._proof is None else self._proof.stored_in(tensor)

    def arrange(self) -> None:
        """Switch on what proves the suspicions, or off: where the modes that are on are the user's."""
        if self._proof is self._wanted:
            return
        if self._proof is not None:
            torch_private.drop_mode(self._proof)
        self._proof = self._wanted
        if self._proof is not None:
            torch_private.add_mode(self._proof)

    def suspend(self) -> None:
        """Prove nothing until the region goes on."""
        self._wanted = None
        self._suspects = []
        self.arrange()
