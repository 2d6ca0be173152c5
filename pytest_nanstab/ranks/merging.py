"""What several ranks have found, as one list: the root cause first, without what it has done to other ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_nanstab.findings import Finding, from_dict
from pytest_nanstab.ranks.group import Group

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
    return [_of(ranks, alike, size) for ranks, alike in _alike([*roots, *others])]


def _when(finding: Finding) -> tuple[bool, int, int]:
    """When in a run; what belongs to no step comes last."""
    return finding.step is None, finding.step or 0, _ORDER.get(finding.phase or "eval", 4)


def _alike(found: Sequence[tuple[int, Finding]]) -> list[tuple[list[int], list[Finding]]]:
    groups: list[tuple[list[int], list[Finding]]] = []
    for rank, finding in found:
        known = next((group for group in groups if group[1][0].is_like(finding)), None)
        if known is None:
            groups.append(([rank], [finding]))
        elif rank not in known[0]:
            known[0].append(rank)
            known[1].append(finding)
    return groups


def shared(group: Group, label: str, findings: Sequence[Finding]) -> list[Finding]:
    """The findings of all ranks of a group, each of which says its own under the same label."""
    told = group.gather(label, {"findings": [finding.as_dict() for finding in findings]})
    return merged({rank: [from_dict(data) for data in said["findings"]] for rank, said in told.items()}, group.size)


def _of(ranks: Sequence[int], several: Sequence[Finding], size: int) -> Finding:
    """The finding with the ranks that have it, in front where it is not all of them."""
    finding = several[0]
    if len(ranks) == size:
        if len({str(one.evidence.get("rank")) for one in several}) == 1 and "rank" in finding.evidence:
            return finding  # it was shared before: all have been told of the same ranks
        return replace(finding, evidence={**finding.evidence, "rank": f"all {size}"})
    which = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
    evidence = {**finding.evidence, "rank": f"{', '.join(map(str, ranks))} of {size}"}
    return replace(finding, message=f"{which}: {finding.message}", evidence=evidence)
