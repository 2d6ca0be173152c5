"""One region among several ranks: nothing is raised while peers wait, and at the end all know what each has found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from pytest_nanstab.attribution.source import shown
from pytest_nanstab.findings import Finding, from_dict
from pytest_nanstab.ranks.drift import Parameters, drifted
from pytest_nanstab.ranks.group import PATIENCE_S, Group, current
from pytest_nanstab.ranks.merging import merged
from pytest_nanstab.ranks.sharding import ShardedNorm
from pytest_nanstab.watching import verdicts

if TYPE_CHECKING:
    from pytest_nanstab.watching.region import Region

_AFTER_FAILURE_S = 5.0  # peers may be waiting for this rank in a collective, and never come


class RankJudge:
    """What a region has to do with other ranks; does nothing in a run of one.

    Attributes:
        group: the process group, once it is met: it may be gone again before the end of a test.
        raised: what the watched code has failed with on this rank, beside what was recorded.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._parameters = Parameters()
        self._sharded: set[int] = set()  # the norms of distributed optimizers, by id
        self._model: set[str] = set()  # the names of what distributed optimizers step
        self.group: Group | None = None
        self.raised: list[Finding] = []

    def look(self) -> Group | None:
        """The process group of this run, now or before."""
        if self.group is None and self._region.options.shares is not None:
            self.group = current()
            if self.group is not None:
                self._region.context.setdefault("rank", f"{self.group.rank} of {self.group.size}")
        return self.group

    def stepping(self, optimizer: Optimizer, norm: Any) -> None:
        """A step that is judged is about to run."""
        if self.look() is None:
            return

        def name_of(parameter: Tensor) -> str:
            return self._region.names.label(optimizer, parameter)

        if isinstance(norm, ShardedNorm) and id(norm) not in self._sharded:
            self._sharded.add(id(norm))
            self._model.update(map(name_of, norm.parameters))
        self._parameters.stepping(norm.parameters, name_of)

    def finish(self, *, failed: bool) -> bool:
        """Exchange what was found and measured; whether there was anybody to exchange it with.

        `failed`: the code under watch has raised an exception of its own.
        """
        group, label = self.look(), self._region.options.shares
        if group is None or label is None:
            return False
        self._parameters.finish()
        patience = _AFTER_FAILURE_S if failed else PATIENCE_S
        told = group.gather(label, self._message(), patience=patience)
        self._take_notes(group)
        if len(told) > 1:
            self._combine_measurements(told)
            self._region.findings[:] = merged({rank: _findings(said) for rank, said in told.items()}, group.size)
            self._judge_norms()
            if len({said["prints"] for said in told.values()}) > 1:
                self._judge_drift(group.gather(f"{label} parameters", self._parameters.details(), patience=patience))
        return True

    def _message(self) -> dict[str, Any]:
        run = self._region.run
        norms = {"grad_norm": run.grad_norm, "clipped_grad_norm": run.clipped_grad_norm} if self._sharded else {}
        return {
            "findings": [finding.as_dict() for finding in (*self.raised, *self._region.findings)],
            "norms": norms,
            "model": sorted(self._model),
            "headroom": run.headroom,
            "prints": self._parameters.digest(),
        }

    def _take_notes(self, group: Group) -> None:
        notes = self._region.run.notes
        notes += [f"rank {rank} did not say in time what it has found" for rank in sorted(group.silent)]
        parts = (part for root in self._region.names.roots() for part in root.modules())
        if any(type(part).__name__ == "FullyShardedDataParallel" for part in parts):
            notes.append("norms are of this rank's shards: only those of `fully_shard` can be put together")

    # -- measurements of the whole -----------------------------------------------------------------------------------

    def _combine_measurements(self, told: Mapping[int, Mapping[str, Any]]) -> None:
        run, group = self._region.run, self.group
        assert group is not None
        if self._sharded:
            mine = told[group.rank]["model"]
            alike = [said["norms"] for said in told.values() if said["model"] == mine]
            complete = len(told) == group.size
            for name in ("grad_norm", "clipped_grad_norm"):
                shares = [norms.get(name, []) for norms in alike]
                setattr(run, name, _whole(shares, run.steps, known=complete))
        for quantity, tensors in run.headroom.items():
            for name in tensors:
                seen = (said["headroom"].get(quantity, {}).get(name) for said in told.values())
                tensors[name] = min((bits for bits in seen if bits is not None), default=tensors[name])

    def _judge_norms(self) -> None:
        """The user's bounds on the norm, which no rank could judge by its own part."""
        region = self._region
        if not self._sharded:
            return
        for name, below in (("max_grad_norm", False), ("min_grad_norm", True)):
            bound = region.options.limits.get(name)
            for step, norm in enumerate(region.run.grad_norm, 1):
                if bound is not None and verdicts.broken(bound, norm, below=below):
                    what = "gradient norm of all ranks"
                    found = verdicts.limit(name, bound, float(norm or 0.0), step=step, what=what, phase="backward")
                    region.report(self._of_all(replace(found, source=shown(region.state.spot) or found.source)))
                    break

    def _judge_drift(self, told: Mapping[int, Mapping[str, Any]]) -> None:
        region = self._region
        if any(finding.is_nonfinite for finding in region.findings):
            return
        found = drifted(told, step=region.run.steps, source=shown(region.state.spot))
        if found is not None:
            region.report(self._of_all(found))

    def _of_all(self, finding: Finding) -> Finding:
        size = 0 if self.group is None else self.group.size
        return replace(finding, evidence={**finding.evidence, "rank": f"all {size}"})


def _findings(said: Mapping[str, Any]) -> list[Finding]:
    return [from_dict(data) for data in said["findings"]]


def _whole(shares: Sequence[Sequence[float | None]], steps: int, *, known: bool) -> list[float | None]:
    """The norms of the whole model from the shares of its ranks; None where one of them is not known."""
    if not known:
        return [None] * steps
    return [_mean_root([part[step] if step < len(part) else None for part in shares]) for step in range(steps)]


def _mean_root(parts: Iterable[float | None]) -> float | None:
    found = list(parts)
    if any(part is None for part in found):
        return None
    return math.hypot(*(part for part in found if part is not None)) / math.sqrt(len(found))
