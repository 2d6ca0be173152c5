"""One test item's baselines: found by its node id, compared or recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pytest_nanstab.baselines import files
from pytest_nanstab.baselines.compare import CURVES, Entry, baseline_finding, compare, entry_of, nonfinite, spread_of
from pytest_nanstab.findings import Finding
from pytest_nanstab.items import plain_id
from pytest_nanstab.settings import SETTINGS

if TYPE_CHECKING:
    from pytest_nanstab.watching.run import Run

OWN_LOOP = "own-loop"  # in place of a precision, where the test's own code decides it
Others: TypeAlias = "Callable[[], tuple[Sequence[Run], Mapping[str, Any]]]"  # further runs, and what made them differ
RECORDED: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


@dataclass(frozen=True)
class Key:
    """Which baseline of a test file: the test without its check, the device kind, the precision."""

    item: str
    device: str
    precision: str

    @property
    def label(self) -> str:
        """ "cpu 32-true"."""
        return f"{self.device} {self.precision}"


@dataclass
class ItemBaselines:
    """Compares runs of one test item with their baselines, or records them under `--nanstab-update`."""

    item: pytest.Item
    _seen: set[Key] = field(default_factory=set)

    def check(
        self,
        run: Run,
        *,
        device: str,
        precision: str | None = None,
        name: str | None = None,
        seed: int | None = None,
        others: Others | None = None,
    ) -> tuple[Finding | None, list[str]]:
        """What is wrong with a run, and notes.

        Args:
            run: the measurements.
            device: "cpu", "cuda", ...
            precision: the arithmetic of the run; None where the test's own loop decides.
            name: tells several runs of one test apart.
            seed: the run's seed, None where it is not known.
            others: gives the further runs that show the spread, when a baseline is recorded.

        Raises:
            ValueError: the same test gave two runs of this name, or its file lies outside pytest's rootdir.
        """
        item = files.item_name(self.item) + (f"{files.NAME_SEPARATOR}{name}" if name else "")
        key = Key(item, device, precision or OWN_LOOP)
        if key in self._seen:
            raise ValueError(f"two baselines of {key.item} for {key.label}; tell them apart with name=...")
        self._seen.add(key)
        unfit = nonfinite(run) or self._empty(run)
        if unfit is not None:
            return unfit, []
        path = files.path_of(self.item)
        try:
            known = files.load(path)
        except files.BaselineFileError as error:
            return self._unreadable(error), []
        if self.item.config.stash[SETTINGS].update:
            return self._record(run, key, seed, others)
        entry = known.get(key.item, {}).get(key.label)
        if entry is None:
            return self._missing(key), []
        finding, notes = compare(entry, entry_of(run, seed=seed), precision=key.precision)
        return (None if finding is None else self._about(finding, entry)), notes

    def _record(self, run: Run, key: Key, seed: int | None, others: Others | None) -> tuple[Finding | None, list[str]]:
        entry = entry_of(run, seed=seed)
        if others is not None:
            further, varied = others()
            unfit = next(filter(None, map(nonfinite, further)), None)
            if unfit is not None:
                return unfit, []
            entries = [entry_of(other, seed=None) for other in further]
            entry["spread"] = {**varied, **spread_of(entry, entries, precision=key.precision)}
        entry["measured_with"] = files.measured_with(self.item.config)
        recorded = {"file": files.file_of(self.item), "item": key.item, "label": key.label, "entry": entry}
        self.item.stash.setdefault(RECORDED, []).append(recorded)
        return None, []

    @staticmethod
    def _empty(run: Run) -> Finding | None:
        if any(value is not None for name in CURVES for value in getattr(run, name)):
            return None
        return baseline_finding("no optimizer step was measured", {}, remedy="give check_baseline a run that trained")

    def _missing(self, key: Key) -> Finding:
        return baseline_finding(
            f"no baseline for {key.label}",
            {"file": self._shown(), "again": f'pytest --nanstab-update "{plain_id(self.item)}"'},
            remedy="record it with the command below, read it, and commit the file",
        )

    def _unreadable(self, error: files.BaselineFileError) -> Finding:
        return baseline_finding(
            f"baseline file {error.path.name}: {error.short}",
            {"file": self._shown(), "reason": error.reason},
            remedy=error.remedy,
        )

    def _about(self, finding: Finding, entry: Entry) -> Finding:
        now, then = files.measured_with(self.item.config), entry.get("measured_with") or {}
        other = {name: f"{then.get(name)} (now {now.get(name)})" for name in now if now.get(name) != then.get(name)}
        evidence = {**finding.evidence, "file": self._shown(), **({"recorded with": other} if other else {})}
        return replace(finding, evidence=evidence)

    def _shown(self) -> str:
        return files.path_of(self.item).relative_to(self.item.config.rootpath.resolve()).as_posix()
