"""What is remembered as long as it lives, without a line of Python when it dies."""

from __future__ import annotations

import gc
import sys

import pytest
import torch
from torch import nn

from pytest_nanstab import watch
from pytest_nanstab.watching.living import Living


class Thing:
    """Something that can be referred to weakly."""


def test_it_knows_what_lives():
    known, kept, gone = Living[str](), Thing(), Thing()
    known[kept], known[gone] = "kept", "gone"
    assert list(known) == [kept, gone]
    assert (known.get(kept), known.get(gone), known.get(Thing())) == ("kept", "gone", None)
    del gone
    assert list(known) == [kept]
    assert len(known._entries) == 1
    known[kept] = "again"
    assert (known.get(kept), list(known)) == ("again", [kept])


def called_while(run) -> list[str]:
    """The functions of ours and of the weakref modules that are called in the meantime."""
    seen = []

    def note(frame, event, _):
        name = frame.f_code.co_filename
        if event == "call" and ("weakref" in name or "pytest_nanstab" in name):
            seen.append(f"{frame.f_code.co_name} in {name}")

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return [name for name in seen if "_contextlib" not in name]


def deaths(steps: int) -> list[str]:
    """What is called while some trained models and their optimizers die."""
    held = []
    for _ in range(8):  # more than are held: some are let go
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(steps):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        held.append([model, optimizer])
    del model, optimizer

    def die():
        held.clear()
        gc.collect()

    gc.collect()  # what others have left
    gc.disable()
    try:
        return called_while(die)
    finally:
        gc.enable()


@pytest.mark.parametrize("steps", [1, 3])
def test_no_python_runs_when_an_optimizer_dies(steps):
    """A signal whose handler raises in such a callback is lost: Ctrl-C, or the end of a timeout. Torch's own stay."""
    deaths(steps)
    without = deaths(steps)
    with watch():
        assert deaths(steps) == without
