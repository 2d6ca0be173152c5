"""The process group of this process, and the store through which its ranks tell each other what they have found.

Nothing here is a collective: one that a single rank joins would never end.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_nanstab.ranks import place
from pytest_nanstab.watching import torch_private

PATIENCE_S = 60.0  # ranks reach the end of a test together, unless one saves or evaluates on its own
_SHORT_S = 2.0  # for a rank that has not answered before
_SOON_S = 0.5  # ranks that have the same test are seldom further apart
_PREFIX = "pytest_nanstab"
_ABSENT = "absent"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05

Payload = dict[str, Any]
_LAST: list[Group] = []
_ROUNDS: Counter[str] = Counter()  # of this process: a later group may use the same store, with the old keys in it


@dataclass(eq=False)
class Group:
    """One process's view of a group of several.

    Attributes:
        rank: this process's number.
        size: how many there are.
        silent: ranks that did not answer the last time.
    """

    rank: int
    size: int
    _store: Any
    silent: set[int] = field(default_factory=set)
    _written: list[str] = field(default_factory=list)
    _without: set[int] = field(default_factory=set)  # ranks that do not have the test at all

    def gather(self, label: str, payload: Mapping[str, Any], *, patience: float = PATIENCE_S) -> dict[int, Payload]:
        """What every rank says at its next round of this label, by rank; one that stays silent is missing.

        JSON text goes through the store, nothing is unpickled. Waits up to `patience` seconds.
        """
        _ROUNDS[label] += 1
        place_of = {rank: f"{_PREFIX}/{label}/{_ROUNDS[label]}/{rank}" for rank in range(self.size)}
        others = {rank: key for rank, key in place_of.items() if rank != self.rank}
        answers = {self.rank: dict(payload)}
        try:
            self._store.set(place_of[self.rank], json.dumps(payload))
            for rank, key in self._arrived(others, patience, label).items():
                answers[rank] = json.loads(self._store.get(key))
        except RuntimeError:  # the store went with the process that kept it
            pass
        self.silent = others.keys() - answers.keys() - self._without
        answers = {rank: answer for rank, answer in answers.items() if _ABSENT not in answer}
        if not self.silent:  # then everybody has read what was said in the round before
            self._clean(place_of[self.rank])
        return dict(sorted(answers.items()))

    def pass_by(self, label: str) -> None:
        """Nothing to say at a round that others may come to: they need not wait."""
        _ROUNDS[label] += 1
        self._say(f"{_PREFIX}/{label}/{_ROUNDS[label]}/{self.rank}", {_ABSENT: True})

    def agree(self, label: str, *, ready: bool) -> bool:
        """Whether all ranks are ready for something that none can do alone."""
        answers = self.gather(label, {"ready": ready})
        agreed = len(answers) == self.size and all(answer["ready"] for answer in answers.values())
        if not agreed:  # for one that comes later
            self._say(f"{_PREFIX}/{label}/{_ROUNDS[label]}/{self.rank}", {"ready": False})
        return agreed

    def _say(self, key: str, payload: Mapping[str, Any]) -> None:
        with suppress(RuntimeError):  # the store went with the process that kept it
            self._store.set(key, json.dumps(payload))

    def publish(self) -> None:
        """Tell the others which tests this rank has."""
        if place.COLLECTED:
            with suppress(RuntimeError):
                self._store.set(f"{_PREFIX}/tests/{self.rank}", json.dumps(place.COLLECTED))

    def _lacks(self, rank: int, label: str) -> bool:
        """Whether a rank has told its tests, and that of the label, which this one has, is not among them."""
        key = f"{_PREFIX}/tests/{rank}"
        if not any(label.startswith(test) for test in place.COLLECTED) or not self._store.check([key]):
            return False
        return not any(label.startswith(test) for test in json.loads(self._store.get(key)))

    def _arrived(self, wanted: Mapping[int, str], patience: float, label: str = "") -> dict[int, str]:
        """Of the keys that are wanted, those that are there in time."""
        began, pause = time.monotonic(), _FIRST_PAUSE_S
        limits = {rank: min(patience, _SHORT_S) if rank in self.silent else patience for rank in wanted}
        waiting, arrived, asked = dict(wanted), {}, False
        self._without = set()
        while waiting:
            here = {rank: key for rank, key in waiting.items() if self._store.check([key])}
            arrived.update(here)
            passed = time.monotonic() - began
            waiting = {r: key for r, key in waiting.items() if r not in here and passed < limits[r]}
            if waiting and passed > _SOON_S and not asked:
                asked = True
                self._without = {rank for rank in waiting if self._lacks(rank, label)}
                waiting = {r: key for r, key in waiting.items() if r not in self._without}
            if waiting:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        return arrived

    def _clean(self, key: str) -> None:
        for old in self._written:
            self._store.delete_key(old)
        self._written = [key]


def current() -> Group | None:
    """The default process group, if it has several ranks that are processes; the same object while it is the same."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    size = distributed.get_world_size()
    if size < 2 or distributed.get_backend() == "fake":  # a pretended group: there is nobody to answer
        return None
    store = torch_private.group_store()
    if store is None:
        return None
    last = last_met()
    if last is None or last._store is not store:
        _LAST[:] = [Group(distributed.get_rank(), size, store)]
        place.met(_LAST[-1].rank, size)
        _LAST[-1].publish()
    return _LAST[-1]


def last_met() -> Group | None:
    """The group met last, which may be gone by now; its store answers as long as somebody holds it."""
    return _LAST[-1] if _LAST else None


def pass_by(label: str) -> None:
    """A test has ended before its call: ranks where it runs need not wait for this one."""
    group = current()
    if group is not None:
        group.pass_by(label)


def leave_together(patience: float = PATIENCE_S / 2) -> None:
    """Let rank 0 end first: a launcher stops the others as soon as one has failed, and that one writes the reports."""
    group = last_met()
    if group is None:
        return
    with suppress(RuntimeError):  # the store went with the process that kept it
        if group.rank == 0:
            group._store.set(f"{_PREFIX}/done", "1")
        else:
            group._arrived({0: f"{_PREFIX}/done"}, patience)
