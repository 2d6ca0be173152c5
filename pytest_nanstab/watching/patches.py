"""Putting our functions in front of torch's and taking them away again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import CellType
from typing import Any

import torch
from torch.nn.utils import clip_grad

from pytest_nanstab.watching import torch_private

_Undo = Callable[[], None]
_ORIGINAL = "__nanstab_original__"


class Patches:
    """A stack of replaced attributes and closure cells; `undo` restores each that is still ours."""

    def __init__(self) -> None:
        self._undo: list[_Undo] = []

    def attribute(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace `owner.name` by `make(original)`."""
        original = getattr(owner, name)
        while (known := getattr(original, _ORIGINAL, None)) is not None and known[0]() is original:
            # Left over by somebody who saved ours while an earlier watch was on, and put it back afterwards.
            original = known[1]
        ours = make(original)
        # Weakly: a function that referred to itself would keep all that it closes over until the collector runs.
        setattr(ours, _ORIGINAL, (weakref.ref(ours), original))
        setattr(owner, name, ours)

        def undo() -> None:
            # Somebody who patched on top of us keeps our function, which passes everything on once we are done.
            if getattr(owner, name) is ours:
                setattr(owner, name, original)

        self._undo.append(undo)

    def cell(self, cell: CellType, make: Callable[[Any], Any]) -> None:
        """Replace what a closure cell holds by `make(original)`."""
        original = cell.cell_contents
        ours = make(original)
        cell.cell_contents = ours

        def undo() -> None:
            if cell.cell_contents is ours:
                cell.cell_contents = original

        self._undo.append(undo)

    def handle(self, handle: Any) -> None:
        """Take a removable hook away at the end."""
        self._undo.append(handle.remove)

    def undo(self) -> None:
        """Take everything away, the latest first."""
        while self._undo:
            self._undo.pop()()


def patch_clips(patches: Patches, norm: Callable[[Any], Any], value: Callable[[Any], Any]) -> None:
    """Replace what is behind `clip_grad_norm_` and `clip_grad_value_`, also for those who imported them before."""
    for name, make in (("clip_grad_norm_", norm), ("clip_grad_value_", value)):
        cell = torch_private.closure_cell(getattr(clip_grad, name))
        if cell is not None:
            patches.cell(cell, make)
        else:
            for module in (clip_grad, torch.nn.utils):
                patches.attribute(module, name, make)
