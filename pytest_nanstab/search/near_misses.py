"""How close the operations with an edge came to it, over everything that was tried."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pytest_nanstab.attribution.source import shown
from pytest_nanstab.search.sites import Seen, Site

SHOWN = 5
_NEAR = 112  # bits, of the 128 that float32 has: what stays farther from its edge is no near miss


class NearMisses:
    """The smallest distance to its edge that each site has shown.

    Attributes:
        closest: by site.
    """

    def __init__(self) -> None:
        self.closest: dict[Site, Seen] = {}
        self._first: dict[Site, float] = {}

    def note(self, seen: Mapping[Site, Seen]) -> None:
        """Take in what one step has shown."""
        for site, now in seen.items():
            self._first.setdefault(site, now.distance)
            known = self.closest.get(site)
            if known is None or now.distance < known.distance:
                self.closest[site] = now

    def ordered(self) -> list[tuple[Site, Seen]]:
        """The sites by how close they came; those without a finite distance are left out."""
        found = [(site, seen) for site, seen in self.closest.items() if math.isfinite(seen.bits)]
        return sorted(found, key=lambda pair: (pair[1].bits, pair[0]))

    def lines(self) -> list[str]:
        """The closest ones in words; constants, which come no closer whatever the batch, are left out."""
        near = [(site, seen) for site, seen in self.ordered() if seen.bits <= _NEAR]
        moving = [(site, seen) for site, seen in near if seen.distance != self._first[site] or not seen.bits]
        return [_line(site, seen) for site, seen in moving[:SHOWN]]


def _line(site: Site, seen: Seen) -> str:
    if seen.bits <= 0:
        how = "reached its edge without harm: nothing bad came of it, or nothing used that"
    else:
        how = f"came within {seen.distance:.3g}, {seen.bits:.0f} bits {site.edge}"
    return f"near miss: {site.op} at {shown(site.spot)} {how}"
