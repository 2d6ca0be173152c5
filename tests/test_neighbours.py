"""Other plugins in the same session: each with a bug that must be found, and a healthy twin that passes as ever."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree as ET

import pytest
from plugin_runs import TRAINING, again, kinds_in, run_inside, run_outside

UNTOUCHED = """
from torch.nn.modules import module
from torch.optim.optimizer import _global_optimizer_pre_hooks as STEP_HOOKS
ORIGINAL = torch.autograd.backward

def untouched():
    return torch.autograd.backward is ORIGINAL and not STEP_HOOKS and not module._global_forward_pre_hooks
"""


# --- pytest-rerunfailures

FLAKY = """
WATCHED, MARKED = [2, None], [2, 2, None]
def test_watched_flaky(): train(WATCHED.pop(0))

@pytest.mark.nanstab
def test_marked_flaky(): train(MARKED.pop(0))  # one turn is the run that explains the failure

@pytest.mark.flaky(reruns=2)
def test_watched_broken(): train(bad=2)

@stability_suite(checks=["finite_steps", "finite_eval"], steps=3)
def test_suite(): return setup(bad=True)

def test_healthy(): train()
"""


@pytest.mark.parametrize("options", [(), ("--only-rerun=NonFiniteError: NaN",)], ids=["all", "only ours"])
def test_rerunfailures(pytester, options):
    """A finding is a failure like any other: run again, forgiven if it does not return, and told once if it does."""
    pytest.importorskip("pytest_rerunfailures")
    files = ("--nanstab-report=r.json", "--junitxml=j.xml")
    ran = run_inside(pytester, FLAKY, "-p", "rerunfailures", "--reruns=1", "--nanstab", *files, *options)
    assert ran.outcomes == {
        "test_watched_flaky": "passed",
        "test_marked_flaky": "passed",
        "test_watched_broken": "failed",
        "test_suite[finite_steps-32-true]": "failed",
        "test_healthy": "passed",
    }
    assert ran.result.parseoutcomes() == {"passed": 3, "failed": 2, "skipped": 1, "rerun": 5}
    *told, last = ran.block("= nanstab =", "nanstab report").splitlines()
    # Which module was given the batch is not known to every torch.
    assert re.fullmatch(r"non-finite  test_it\S*t_suite\[\S+  .*test_it\.py:21", last)
    assert "\n".join(told) == (
        "=================================== nanstab ====================================\n"
        "2 tests checked, 3 watched, 15 optimizer steps, 2 failed, 1 skipped\n"
        "non-finite  test_it.py::test_watched_broken  step 2  test_it.py:13"
    )
    assert kinds_in(pytester) == {
        "test_watched_flaky": [],
        "test_marked_flaky": [],
        "test_watched_broken": ["nonfinite-loss"],
        "test_suite[finite_steps-32-true]": ["nonfinite-input"],
        "test_suite[finite_eval-32-true]": [],
        "test_healthy": [],
    }
    cases = list(ET.parse(pytester.path / "j.xml").getroot().iter("testcase"))
    assert [case.attrib["name"] for case in cases if case.find("failure") is not None] == [
        "test_watched_broken",
        "test_suite[finite_steps-32-true]",
    ]


def test_reruns_of_what_is_not_ours(pytester):
    """With reruns for another error alone, a finding fails at once."""
    pytest.importorskip("pytest_rerunfailures")
    options = ("-p", "rerunfailures", "--reruns=1", "--only-rerun=OSError", "--nanstab")
    ran = run_inside(pytester, "BAD = [2, None]\ndef test_flaky(): train(BAD.pop(0))\n", *options)
    assert ran.result.parseoutcomes() == {"failed": 1}


# --- pytest-timeout

# Mostly asleep: what a signal raises in a callback of the garbage collector (Hypothesis has one) is lost.
SLOW = """
import time

@pytest.mark.timeout(0.4, func_only=True)
def test_watched():
    train(bad=2)
    while True: train(), time.sleep(0.05)

@pytest.mark.timeout(0.4, func_only=True)
@pytest.mark.nanstab
def test_marked():
    while True: train(), time.sleep(0.05)

@pytest.mark.timeout(0.4, func_only=True)
@stability_suite(checks=["finite_steps"], steps=10**9)
def test_suite(): return setup()

@pytest.mark.timeout(0.4, func_only=True)
def test_within_forward():
    class Slow(nn.Module):
        def forward(self, x): time.sleep(100)
    Slow()(torch.ones(1))
"""
AFTER = """
@pytest.mark.nanstab
def test_still_found(): train(bad=2)

def test_healthy(): train()

@pytest.fixture(autouse=True)
def nothing_left():
    assert untouched()
    yield
    assert untouched()
"""


def test_timeout_by_signal(pytester):
    """A watched test that is cut short fails by that, keeps its finding, and leaves no hook to the next."""
    pytest.importorskip("pytest_timeout")
    options = ("-p", "timeout", "--timeout-method=signal", "--nanstab", "--nanstab-report=r.json")
    ran = run_inside(pytester, UNTOUCHED + SLOW + AFTER, *options, "--tb=short")
    assert ran.outcomes == {
        **dict.fromkeys(("test_watched", "test_marked", "test_within_forward"), "failed"),
        "test_suite[finite_steps-32-true]": "failed",
        "test_still_found": "failed",
        "test_healthy": "passed",
    }
    assert sum(line == "E   Failed: Timeout (>0.4s) from pytest-timeout." for line in ran.lines) == 4
    assert kinds_in(pytester) == {
        "test_watched": ["nonfinite-loss"],
        "test_marked": [],
        "test_suite[finite_steps-32-true]": [],
        "test_within_forward": [],
        "test_still_found": ["nonfinite-loss"],
        "test_healthy": [],
    }


EXPLAINED_SLOWLY = """
import time
RUNS = []

@pytest.mark.timeout(1.5)
@pytest.mark.nanstab
def test_rerun_is_slow():
    RUNS.append(1)
    if len(RUNS) > 1: time.sleep(100)
    train(bad=2)

@pytest.mark.timeout(1.5)
@pytest.mark.nanstab
def test_judging_is_slow(monkeypatch):
    monkeypatch.setattr("pytest_nanstab.replay._first_steps", lambda *given: time.sleep(100))
    train(bad=2)

def test_healthy(): train()
"""


def test_timeout_while_we_explain(pytester):
    """The clock runs on after the test has failed: the failure stands without its origin, and the session goes on."""
    pytest.importorskip("pytest_timeout")
    options = ("-p", "timeout", "--timeout-method=signal", "--nanstab-report=r.json")
    ran = run_inside(pytester, EXPLAINED_SLOWLY, *options)
    assert ran.outcomes == {
        "test_rerun_is_slow": "failed",
        "test_judging_is_slow": "failed",
        "test_healthy": "passed",
    }
    assert (
        sum(line.startswith("E  ") and "NonFiniteError: NaN in the loss at step 2" in line for line in ran.lines) == 2
    )
    assert set(map(tuple, kinds_in(pytester).values())) == {("nonfinite-loss",)}


@pytest.mark.slow
def test_timeout_by_thread(pytester, monkeypatch):
    """That method ends the process, with the stack of the test; the watch does not keep it."""
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(test_it=TRAINING + "@pytest.mark.timeout(2)\ndef test_slow():\n    while True: train()\n")
    options = ("-p", "timeout", "--timeout-method=thread", "--nanstab")
    ran = run_outside(pytester, monkeypatch, *options)
    assert ran.code == 1
    shown = ran.text + ran.result.stderr.str()
    assert "Timeout" in shown
    assert "in test_slow" in shown


# --- pytest-benchmark


def test_benchmark(pytester):
    """The watch follows a training that is called over and over; what it returns and counts is pytest-benchmark's."""
    pytest.importorskip("pytest_benchmark")
    body = """
def test_watched(benchmark): benchmark(train, 2)

@pytest.mark.nanstab
def test_marked(benchmark): benchmark.pedantic(train, (2,), rounds=5)

def test_healthy(benchmark):
    benchmark.pedantic(train, rounds=5, iterations=2)
    assert benchmark.stats.stats.rounds == 5

@pytest.mark.nanstab
def test_marked_healthy(benchmark): benchmark(train)
"""
    options = ("-p", "pytest_benchmark.plugin", "--benchmark-max-time=0.02", "--benchmark-min-rounds=2")
    ran = run_inside(pytester, body, *options, "--nanstab", "--nanstab-report=r.json")
    assert ran.outcomes == {
        "test_watched": "failed",
        "test_marked": "failed",
        "test_healthy": "passed",
        "test_marked_healthy": "passed",
    }
    broken = ["nonfinite-loss"]
    healthy = {"test_healthy": [], "test_marked_healthy": []}
    assert kinds_in(pytester) == {"test_watched": broken, "test_marked": broken, **healthy}
    report = json.loads((pytester.path / "r.json").read_text())
    assert {r["id"]: len(r["run"]["loss"]) for r in report["tests"]}["test_it.py::test_healthy"] >= 30


# --- pytest-asyncio


def test_asyncio(pytester):
    """Tests that train in a coroutine, in several, in a thread of theirs, and in unittest's own way."""
    pytest.importorskip("pytest_asyncio")
    body = """
import asyncio

async def train_async(bad=None):
    await asyncio.sleep(0)
    train(bad)
    await asyncio.sleep(0)

class TestBroken:
    @pytest.mark.asyncio
    async def test_watched(self): await train_async(2)

    @pytest.mark.asyncio
    @pytest.mark.nanstab
    async def test_marked(self): await train_async(2)

    @pytest.mark.asyncio
    async def test_fixture(self, nanstab): nanstab.train(setup(bad=2), steps=3)

    @pytest.mark.asyncio
    async def test_gathered(self): await asyncio.gather(train_async(), train_async(2), train_async())

    @pytest.mark.asyncio
    async def test_in_a_thread(self): await asyncio.to_thread(train, 2)

class TestHealthy:
    @pytest.mark.asyncio
    async def test_watched(self): await train_async()

    @pytest.mark.asyncio
    @pytest.mark.nanstab
    async def test_marked(self): await train_async()

    @pytest.mark.asyncio
    async def test_fixture(self, nanstab): nanstab.train(setup(), steps=3)

    @pytest.mark.asyncio
    async def test_gathered(self): await asyncio.gather(train_async(), train_async(), train_async())

class TestOld(unittest.IsolatedAsyncioTestCase):
    async def test_broken(self): await train_async(2)
    async def test_healthy(self): await train_async()
"""
    options = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")
    ran = run_inside(pytester, body, *options, "--nanstab")
    ways = ("watched", "marked", "fixture", "gathered")
    assert ran.outcomes == {
        **{f"TestBroken::test_{way}": "failed" for way in (*ways, "in_a_thread")},
        **{f"TestHealthy::test_{way}": "passed" for way in ways},
        "TestOld::test_broken": "failed",
        "TestOld::test_healthy": "passed",
    }
    assert sum(line.startswith("non-finite  ") for line in ran.lines) == 6
    without = again(pytester, *options).outcomes  # the same, unwatched: only explicit tests are checked
    assert [name for name, word in without.items() if word == "failed"] == [
        "TestBroken::test_marked",
        "TestBroken::test_fixture",
    ]


# --- pytest-cov


@pytest.mark.slow
def test_cov(pytester, monkeypatch):
    """The coverage of the user's code is what it is without the watch."""
    pytest.importorskip("pytest_cov")
    body = "import lib\ndef test_broken(): lib.fit(train, 2)\ndef test_healthy(): lib.fit(train, None)\n"
    lib = """
def fit(train, bad):
    if bad == 1:
        return train(None)
    return train(bad)

def unused():
    return 1
"""
    pytester.makepyfile(test_it=TRAINING + body, lib=lib)
    options = ("-p", "pytest_cov", "--cov=lib", "--cov-branch", "--cov-report=term-missing")
    watched = run_outside(pytester, monkeypatch, *options, "--nanstab", "-rA")
    assert watched.outcomes == {"test_broken": "failed", "test_healthy": "passed"}
    (line,) = [line for line in watched.lines if line.startswith("lib.py ")]
    assert line.split() == ["lib.py", "6", "2", "2", "1", "62%", "3,", "7"]


# --- pytest-torch


@pytest.mark.slow
def test_pytest_torch(pytester, monkeypatch):
    """Side by side: its fixtures and markers do what they do, and what it lets pass is found."""
    pytest.importorskip("pytest_torch")
    body = """
def test_watched(torch_device): train(2)

@pytest.mark.nanstab
@pytest.mark.torch_seed(3)
def test_marked(): train(2)

@pytest.mark.torch_detect_anomaly
def test_anomaly(): train(2)

def test_healthy(torch_device): train()

@pytest.mark.nanstab
@pytest.mark.torch_seed(3)
def test_marked_healthy():
    assert torch.initial_seed() != 67280421310721  # torch's own: theirs comes from the test's id
    train()

@pytest.mark.torch_detect_anomaly
def test_anomaly_healthy(): train()
"""
    pytester.makepyfile(test_it=TRAINING + body)
    # Its modules use its own markers before they are registered.
    options = ("-p", "pytest_torch", "-W", "ignore::pytest.PytestUnknownMarkWarning", "-rA")
    ran = run_outside(pytester, monkeypatch, *options, "--nanstab", "--nanstab-report=r.json")
    assert {name.partition("[")[0]: word for name, word in ran.outcomes.items()} == {
        "test_watched": "failed",
        "test_marked": "failed",
        "test_anomaly": "failed",
        "test_healthy": "passed",
        "test_marked_healthy": "passed",
        "test_anomaly_healthy": "passed",
    }
    assert kinds_in(pytester)["test_marked"] == ["nonfinite-loss"]
    # torch's own message stays the failure.
    assert "E           RuntimeError: Function 'MulBackward0' returned nan values in its 0th output." in ran.lines


# --- pytest-randomly


def test_randomly(pytester):
    """Reordered and reseeded, a suite's items find the same, and a watched test draws the same numbers."""
    pytest.importorskip("pytest_randomly")
    body = """
@stability_suite(steps=3, checks=["finite_steps", "finite_eval", "gradient_bounds", "headroom"], max_loss=1e-9)
def test_suite(): return setup()

def test_watched(): train(bad=2)

def test_draws():
    import random
    drawn = [random.random(), torch.rand(1, generator=torch.Generator().manual_seed(random.randrange(99))).item()]
    train()
    with open("drawn.txt", "a") as file:
        file.write(f"{drawn} {random.random()}\\n")
"""
    pytester.makepyfile(test_it=TRAINING + body)
    orders, outcomes = [], []
    for options in (("--randomly-seed=3",), ("--randomly-seed=3", "--nanstab"), ("-p", "no:randomly", "--nanstab")):
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-v", "-W", "error", *options)
        orders.append([line.split()[0] for line in result.outlines if line.startswith("test_it.py::")])
        outcomes.append(result.parseoutcomes())
    assert outcomes == [{"passed": 5, "failed": 1}, *[{"passed": 4, "failed": 2}] * 2]
    assert orders[0] == orders[1]
    assert orders[1] != orders[2]
    assert sorted(orders[1]) == sorted(orders[2])
    drawn = (pytester.path / "drawn.txt").read_text().splitlines()
    assert drawn[0] == drawn[1]
