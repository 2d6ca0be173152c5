"""Under pytest-xdist: the suite items that read one training go to one worker, which trains once for all of them.

Imported when xdist asks for a scheduler, so xdist is there. The controller knows tests by their ids alone. A session
without suites is spread exactly as xdist spreads it; every class keeps the name that xdist announces with -v.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pytest
from xdist import scheduler  # type: ignore[import-untyped]

from pytest_nanstab.suite.spec import CHECKS, ONCE, PRECISIONS

_TRAINED = "|".join([*(check for check in CHECKS if check not in ONCE), "baseline"])
_CASE = re.compile(rf"(?<=[\[-])(?:(?:{_TRAINED})-(?P<precision>{'|'.join(PRECISIONS)})|{'|'.join(ONCE)})(?=[\]-])")


def groups_of(ids: Sequence[str]) -> dict[str, str]:
    """For each suite item's id the training it reads; items that read none go with their suite's first precision.

    A test that only looks like a suite's item, by its parameters, is kept together with its likes: that costs nothing
    but some choice.
    """
    bases: dict[str, str] = {}
    precisions: dict[str, str | None] = {}
    first: dict[str, str] = {}
    for node_id in ids:
        match = _CASE.search(node_id)
        if match is not None:
            bases[node_id] = base = f"{node_id[: match.start()]}*{node_id[match.end() :]}"
            precisions[node_id] = precision = match["precision"]
            if precision is not None:
                first.setdefault(base, precision)
    return {node_id: f"{base} {precisions[node_id] or first.get(base)}" for node_id, base in bases.items()}


def whole(pending: list[int], count: int, groups: Sequence[str | None]) -> int:
    """Move what belongs to the first `count` pending tests right behind them; returns how many they are then."""
    begun = {groups[index] for index in pending[:count]} - {None}
    members = [index for index in pending[count:] if groups[index] in begun]
    others = [index for index in pending[count:] if groups[index] not in begun]
    pending[count:] = members + others
    return min(count, len(pending)) + len(members)


class _InChunks:
    """For the schedulers that send consecutive tests: no chunk ends within a suite's group."""

    collection: list[str] | None
    pending: list[int]

    @cached_property
    def _groups(self) -> list[str | None]:
        ids = self.collection or []
        found = groups_of(ids)
        return [found.get(node_id) for node_id in ids] if found else []

    def _send_tests(self, node: Any, num: int) -> None:
        count = whole(self.pending, num, self._groups) if self._groups else num
        super()._send_tests(node, count)  # type: ignore[misc]


class LoadScheduling(_InChunks, scheduler.LoadScheduling):  # type: ignore[misc]
    """Chunk by chunk, as workers get free."""


class WorkStealingScheduling(_InChunks, scheduler.WorkStealingScheduling):  # type: ignore[misc]
    """Everything at once; a worker that has run out may still steal a part of a group, and trains for it again."""


class LoadGroupScheduling(scheduler.LoadGroupScheduling):  # type: ignore[misc]
    """By the user's groups; suite items in none of them are one of their own, and their ids stay as they are."""

    @cached_property
    def _groups(self) -> dict[str, str]:
        return groups_of(self.collection or [])

    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        return self._groups.get(nodeid, scope) if scope == nodeid else scope


def scheduler_for(config: pytest.Config, log: Any) -> Any:
    """The scheduler for the user's `--dist`; None where xdist's own keeps suites together, or runs all everywhere."""
    ours = {"load": LoadScheduling, "loadgroup": LoadGroupScheduling, "worksteal": WorkStealingScheduling}
    chosen = ours.get(config.getvalue("dist"))
    return None if chosen is None else chosen(config, log)
