"""One test item's call phase: its region, its verdict, its record. Imports torch only once the test has."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nanstab.arrival import Arrival
from pytest_nanstab.errors import StabilityError
from pytest_nanstab.settings import ItemSettings

if TYPE_CHECKING:
    from pytest_nanstab.findings import Finding
    from pytest_nanstab.watching.region import Region

WATCH: pytest.StashKey[ItemWatch] = pytest.StashKey()


class ItemWatch:
    """Watches the call phase of one item.

    Args:
        item: the test.
        mode: "explicit" raises at the sink; "watched" raises after the test has passed; "report" never raises.
        settings: limits and exceptions, for explicit tests.
    """

    def __init__(self, item: pytest.Item, mode: str, settings: ItemSettings) -> None:
        self.mode = mode
        self.settings = settings
        self.findings: tuple[Finding, ...] = ()
        self._item = item
        self._region: Region | None = None
        self._arrival = Arrival(self._open)

    def begin(self) -> None:
        """Open the region, now or when the test imports torch."""
        if "torch" in sys.modules:
            self._open()
        else:
            self._arrival.install()

    def _open(self) -> None:
        from pytest_nanstab.watching.options import Options
        from pytest_nanstab.watching.region import Region

        explicit = self.mode == "explicit"
        options = Options(
            raises=explicit,
            dense=explicit,
            limits=self.settings.limits,
            allow_nonfinite=self.settings.allow_nonfinite,
        )
        self._region = Region(options, {"again": f'pytest "{self._item.nodeid}"'} | self._flag())
        self._region.__enter__()

    def _flag(self) -> dict[str, object]:
        if self.mode == "explicit":
            return {}
        return {"again": f'pytest --nanstab "{self._item.nodeid}"'}

    def abandon(self) -> None:
        """Take all hooks away, whatever happened."""
        self._arrival.remove()
        if self._region is not None:
            self._region.leave()

    def conclude(self, error: BaseException | None) -> None:
        """Judge what is only known at the end; raises for a test that has passed so far and should not."""
        __tracebackhide__ = True
        region = self._region
        if region is None:
            return
        failed = error is not None or bool(getattr(self._item, "_excinfo", None))
        try:
            region.finish(quiet=failed or self.mode != "explicit")
        except StabilityError as verdict:
            self.findings = verdict.findings
            raise
        if isinstance(error, StabilityError):
            self.findings = error.findings
        elif failed or self.mode != "explicit":
            # What an explicit test raised and caught itself is consumed.
            self.findings = tuple(region.findings)
        if self.findings and not failed and self.mode == "watched":
            raise _verdict(self.findings)

    def record(self) -> dict[str, Any]:
        """The measured part of the item's test record."""
        region = self._region
        run = region.run if region is not None else None
        return {
            "mode": self.mode,
            "check": None,
            "precision": None,
            "seed": None,
            "limits": limits_data(self.settings.limits if self.mode == "explicit" else {}),
            "run": None if run is None else run.as_dict(),
            "headroom": {} if run is None else run.headroom,
            "init_scale": None,
            "findings": [finding.as_dict() for finding in self.findings],
            "used_torch": region is not None and region.used,
        }


def limits_data(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Effective limits as the JSON report has them."""
    return {name: {"value": limit.value, "source": limit.source} for name, limit in limits.items()}


def _verdict(findings: tuple[Finding, ...]) -> StabilityError:
    from pytest_nanstab.findings import error_from

    return error_from(findings)
