"""This process's place in a run of several. Standard library only: sessions that use no torch ask, too."""

from __future__ import annotations

import os
from collections.abc import Iterable

_seen: list[tuple[int, int]] = []  # (rank, world size) of the process group met last
COLLECTED: list[str] = []  # the ids of this session's tests, where others run beside it


def met(rank: int, size: int) -> None:
    """A process group of several ranks was met."""
    _seen[:] = [(rank, size)]


def is_one_of_several() -> bool:
    """Whether a launcher such as torchrun has started this process beside others, or it has met others in a group."""
    return bool(_seen) or _size() > 1


def collected(ids: Iterable[str]) -> None:
    """The tests of this session are known: ranks may have others, and need not wait for this one there."""
    if _size() > 1:
        COLLECTED[:] = ids


def is_first() -> bool:
    """Whether this process is the one that reports and writes: rank 0, or the only one.

    `RANK` alone tells nothing, clusters leave it in shells; so it counts where torchrun has set it, or where a process
    group was met.
    """
    if _seen:
        return _seen[-1][0] == 0
    return not (_size() > 1 and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0")


def command(pytest_command: str) -> str:
    """The command that runs a test again, by the same launcher."""
    if _size() < 2 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return pytest_command
    return f"torchrun --nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', _size())} -m {pytest_command}"


def _size() -> int:
    try:
        return int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 1
