"""What several ranks have found, as one list: the root cause first, without what it has done to other ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_nanstab.findings import Finding

# Within a step a NaN travels this way: through the averaged gradients it reaches ranks whose own losses are finite.
_ORDER = {"data": 0, "init": 0, "forward": 1, "backward": 2, "optimizer": 3, "eval": 4}


def merged(found: Mapping[int, Sequence[Finding]], size: int) -> list[Finding]:
    """The findings of all ranks, the same list on each of them.

    Of what is not finite only the earliest stays, in the order of a step; what several ranks have found alike is one
    finding that names them all.
    """
    every = [(rank, finding) for rank, findings in sorted(found.items()) for finding in findings]
    broken = [(rank, finding) for rank, finding in every if finding.is_nonfinite]
    others = [(rank, finding) for rank, finding in every if not finding.is_nonfinite]
    first = min((_when(finding) for _, finding in broken), default=None)
    roots = [(rank, finding) for rank, finding in broken if _when(finding) == first]
    return [_of(ranks, finding, size) for finding, ranks in _alike([*roots, *others])]


def _when(finding: Finding) -> tuple[bool, int, int]:
    """When in a run; what belongs to no step comes last."""
    return finding.step is None, finding.step or 0, _ORDER.get(finding.phase or "eval", 4)


def _alike(found: Sequence[tuple[int, Finding]]) -> list[tuple[Finding, list[int]]]:
    groups: dict[tuple[object, ...], tuple[Finding, list[int]]] = {}
    for rank, finding in found:
        key = (finding.kind, finding.step, finding.module, finding.source, finding.op)
        groups.setdefault(key, (finding, []))[1].append(rank)
    return list(groups.values())


def _of(ranks: Sequence[int], finding: Finding, size: int) -> Finding:
    """The finding with the ranks that have it, in front where it is not all of them."""
    if len(ranks) == size:
        return replace(finding, evidence={**finding.evidence, "rank": f"all {size}"})
    which = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
    evidence = {**finding.evidence, "rank": f"{', '.join(map(str, ranks))} of {size}"}
    return replace(finding, message=f"{which}: {finding.message}", evidence=evidence)
