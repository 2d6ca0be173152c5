"""Nobody pays for torch who does not use it; a test that imports it in its own body is watched from there on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from plugin_runs import run_outside

# Writes what is loaded when the session starts and when it ends, one file per process.
LOOK = """
import os, sys

def loaded():
    return [name for name in ("torch", "numpy", "hypothesis") if name in sys.modules]

def pytest_sessionstart():
    global at_start
    at_start = loaded()

def pytest_unconfigure(config):
    worker = getattr(config, "workerinput", {}).get("workerid", "main")
    if not hasattr(config, "workerinput") or worker:
        with open(f"loaded-{worker}.txt", "w") as file:
            file.write(repr([at_start, loaded()]))
"""
PLAIN = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_plain(number):
    pass

def test_fails():
    assert 0
"""


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def loaded_in(folder: Path) -> dict[str, str]:
    return {path.stem.removeprefix("loaded-"): path.read_text() for path in folder.glob("loaded-*.txt")}


NOTHING = "[[], []]"


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        ([], ["main"]),
        (["--nanstab", "--nanstab-report=r.json", "--nanstab-headroom=0", "-v"], ["main"]),
        (["--nanstab", "--nanstab-report=r.json", "-p", "xdist", "-n", "2"], ["gw0", "gw1", "main"]),
    ],
    ids=["default", "watching", "xdist"],
)
def test_a_session_without_torch_stays_without(pytester, monkeypatch, arguments, processes):
    """Neither at the start nor at the end has the plugin imported torch, numpy or hypothesis, in any process."""
    pytester.makeconftest(LOOK)
    pytester.makepyfile(test_it=PLAIN)
    ran = run_outside(pytester, monkeypatch, *arguments)
    assert ran.result.parseoutcomes() == {"passed": 4, "failed": 1}
    assert loaded_in(pytester.path) == dict.fromkeys(processes, NOTHING)
    if "--nanstab" in arguments:
        assert "0 tests watched, 0 optimizer steps; 5 tests never used torch" in ran.lines
        report = json.loads((pytester.path / "r.json").read_text())
        assert report["environment"]["devices"] == []
        assert report["summary"]["never_used_torch"] == 5


LATE = """
import sys

def train(bad):
    import torch
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], 0.1)
    for step in range(1, 4):
        optimizer.zero_grad()
        (weight.sum() * (float("nan") if step == bad else 1.0)).backward()
        optimizer.step()

def test_asks_whether_torch_is_there():
    import importlib.util
    assert importlib.util.find_spec("torch") is not None
    assert importlib.util.find_spec("torch").has_location
    assert "torch" not in sys.modules

def test_imports_torch():
    import importlib.util
    assert importlib.util.find_spec("torch") is not None
    train(bad=2)
    import torch
    loader = torch.__spec__.loader
    assert type(loader).__module__ in ("importlib._bootstrap_external", "_frozen_importlib_external")
    assert torch.__loader__ is loader
    assert not [finder for finder in sys.meta_path if "nanstab" in type(finder).__module__]

def test_healthy():
    train(bad=None)
    assert not [finder for finder in sys.meta_path if "nanstab" in type(finder).__module__]
"""


def test_torch_imported_by_the_test_itself(pytester, monkeypatch):
    """The twin of the above, and more: torch arrives in the middle of a test, and what it trains is watched."""
    pytester.makeconftest(LOOK)
    pytester.makepyfile(test_it=LATE)
    ran = run_outside(pytester, monkeypatch, "--nanstab", "-rA")
    assert ran.outcomes == {
        "test_asks_whether_torch_is_there": "passed",
        "test_imports_torch": "failed",
        "test_healthy": "passed",
    }
    assert "2 tests watched, 6 optimizer steps, 1 failed; 1 test never used torch" in ran.lines
    assert "FAILED test_it.py::test_imports_torch - NonFiniteError: NaN in the loss at st..." in ran.lines
    assert loaded_in(pytester.path) == {"main": "[[], ['torch', 'numpy']]"}


STAND_INS = """
import sys, types
import pytest

@pytest.fixture(params=[None, types.ModuleType("torch")], ids=["none", "stub"])
def without_torch(request, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", request.param)

def test_without_torch(without_torch):
    with pytest.raises(ImportError):
        import torch.nn

@pytest.mark.nanstab
def test_explicit_without_torch(without_torch):
    pass

def test_arrives_and_fails(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._C", None)
    with pytest.raises(ImportError):
        import torch
    monkeypatch.undo()
"""


def test_a_stand_in_for_torch_is_not_watched(pytester, monkeypatch):
    """Tests that pretend torch is missing, or replace it, run as they would without the plugin."""
    pytester.makepyfile(test_it=STAND_INS)
    assert run_outside(pytester, monkeypatch, "--nanstab").result.parseoutcomes() == {"passed": 5}


SHOW = "print([name for name in ('torch', 'numpy', 'hypothesis') if name in sys.modules])\n"


def test_importing_the_package_loads_nothing_heavy(pytester):
    """The package and the plugin's own modules import neither torch nor numpy nor hypothesis."""
    modules = "pytest_nanstab pytest_nanstab.plugin pytest_nanstab.records pytest_nanstab.suite.expand"
    script = f"import sys\nfor name in {modules.split()}: __import__(name)\n"
    assert pytester.run(*python(script + SHOW)).outlines == ["[]"]


def test_arrival_takes_part_in_imports_only_while_installed(pytester):
    """Unit test of the finder: torch's spec is passed on, nothing else is looked for, a late loader stays silent."""
    script = """
import importlib.util, sys
from pytest_nanstab.arrival import Arrival, torch_is_here

arrived = []
first, second = Arrival(lambda: arrived.append("first")), Arrival(lambda: arrived.append("second"))
first.install()
assert first.find_spec("json", None) is None
late = importlib.util.find_spec("torch")
assert late.loader.path == late.origin and late.loader.is_package("torch")
first.remove()
first.remove()
second.install()
assert not torch_is_here()
module = importlib.util.module_from_spec(late)
assert not arrived
import torch
assert torch_is_here() and arrived == ["second"] and second not in sys.meta_path
import copy
copy.copy(late.loader)
"""
    result = pytester.run(*python(script + SHOW))
    assert (result.ret, result.errlines) == (0, [])
    assert result.outlines == ["['torch', 'numpy']"]  # the twin of the test above
