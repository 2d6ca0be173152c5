"""What comes with Hypothesis, Python and pytest: profiles and deadlines, unittest, doctest."""

from __future__ import annotations

import pytest
from plugin_runs import again, kinds_in, run_inside

# --- Hypothesis


PROFILES = """
from hypothesis import HealthCheck, settings
settings.register_profile("ci", derandomize=True, max_examples=10, print_blob=False)
settings.register_profile("dev", max_examples=5, deadline=2000)
settings.register_profile("strict", max_examples=10, deadline=1000, suppress_health_check=[])
"""


@pytest.mark.parametrize("profile", ["ci", "dev", "strict"])
def test_profiles_of_hypothesis(pytester, profile):
    """Whatever profile is loaded, a bug is found, the healthy twin passes, no deadline or health check objects."""
    body = """
from hypothesis import given, strategies as st

@given(st.integers(0, 9))
def test_watched(n): train(bad=2)

@pytest.mark.nanstab
@given(st.integers(0, 9))
def test_marked(n): train(bad=2 if n > 3 else None)

@given(st.integers(0, 9))
def test_healthy(n): train()

@pytest.mark.nanstab
@given(st.integers(0, 9))
def test_marked_healthy(n): train()
"""
    ran = run_inside(pytester, body, "--nanstab", f"--hypothesis-profile={profile}", conftest=PROFILES)
    assert ran.outcomes == {
        "test_watched": "failed",
        "test_marked": "failed",
        "test_healthy": "passed",
        "test_marked_healthy": "passed",
    }
    failed = [line for line in ran.lines if line.startswith("FAILED")]
    assert all("NonFiniteError: NaN in the loss" in line for line in failed)


DEADLINE = """
import time
import pytest_nanstab.watching.region as region
from pytest_nanstab.attribution import local
from hypothesis import given, settings, strategies as st

@pytest.fixture(autouse=True)
def slow_watch(monkeypatch):
    def slowly(original):
        def call(*arguments, **named):
            time.sleep(0.3)
            return original(*arguments, **named)
        return call
    for owner, name in ((region.Region, "__enter__"), (region.Region, "finish"), (local, "explained")):
        monkeypatch.setattr(owner, name, slowly(getattr(owner, name)))

class Test:
    @settings(deadline=200, max_examples=2, database=None)
    @given(st.just(1))
    def test_watched(self, n): train(bad=2)

    @pytest.mark.nanstab
    @settings(deadline=200, max_examples=2, database=None)
    @given(st.just(1))
    def test_marked(self, n): train()

    @pytest.mark.nanstab
    @settings(deadline=200, max_examples=2, database=None)
    @given(st.just(1))
    def test_slow_itself(self, n): time.sleep(0.3)
"""


def test_our_time_does_not_count_against_the_deadline(pytester):
    """Opening a watch, closing it and explaining a finding may take longer than an example; its own time counts."""
    hypothesis = pytest.importorskip("hypothesis")
    if hypothesis.__version_info__ < (6, 140):
        pytest.skip("this Hypothesis counts everything but drawing")
    ran = run_inside(pytester, DEADLINE, "-o", "nanstab=report")
    assert ran.outcomes == {
        "Test::test_watched": "passed",
        "Test::test_marked": "passed",
        "Test::test_slow_itself": "failed",
    }
    assert "1 reported" in ran.text
    assert any(line.startswith("FAILED") and "errors.Deadline" in line for line in ran.lines)


# --- unittest


def test_unittest(pytester):
    """setUp, subTest, expectedFailure, cleanups: training in any of them is judged with its test."""
    body = """
class TestBroken(unittest.TestCase):
    def test_plain(self): train(bad=2)

    @unittest.expectedFailure
    def test_expected(self): train(bad=2)

    @unittest.expectedFailure
    def test_expected_of_another_kind(self):
        train(bad=2)
        self.fail("known")

    @pytest.mark.nanstab
    def test_marked(self): train(bad=2)

    def test_in_a_subtest(self):
        for bad in (None, 2):
            with self.subTest(bad=bad):
                train(bad)

class TestSetUp(unittest.TestCase):
    def setUp(self): train(bad=2)
    def test_it(self): pass

class TestHealthy(unittest.TestCase):
    @classmethod
    def setUpClass(cls): train()
    def setUp(self): self.addCleanup(train)
    def test_plain(self): train()
    @pytest.mark.nanstab
    def test_marked(self): train()
    @unittest.skip("not here")
    def test_skipped(self): train(bad=2)
    def test_in_a_subtest(self):
        for scale in (1.0, 0.5):
            with self.subTest(scale=scale):
                train(scale=scale)
"""
    ran = run_inside(pytester, body, "--nanstab", "-p", "no:subtests")
    broken = {f"TestBroken::test_{name}": "failed" for name in ("plain", "marked", "in_a_subtest")}
    healthy = {f"TestHealthy::test_{name}": "passed" for name in ("plain", "marked", "in_a_subtest")}
    assert ran.outcomes == {
        **broken,
        **healthy,
        "TestSetUp::test_it": "failed",
        "TestBroken::test_expected": "failed",  # without the flag it is an unexpected success, and that fails
        "TestBroken::test_expected_of_another_kind": "xfail",
    }


# --- doctest

DOCTESTS = {
    "lib": '''
"""Trains on NaN.

>>> import torch
>>> weight = torch.nn.Parameter(torch.ones(1))
>>> optimizer = torch.optim.SGD([weight], 0.1)
>>> (weight.sum() * float("nan")).backward()
>>> optimizer.step()
"""
import torch

def healthy():
    """
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> weight.sum().backward()
    >>> torch.optim.SGD([weight], 0.1).step()
    >>> round(weight.item(), 4)
    0.9
    """

def makes_nan():
    """
    >>> torch.nn.Threshold(0.0, float("nan")).eval()(torch.zeros(3)).sum() > 0
    tensor(False)
    """

def shows_nan():
    """
    >>> torch.nn.Threshold(0.0, float("nan")).eval()(torch.zeros(3))
    tensor([nan, nan, nan])
    """

def wrong_itself():
    """
    >>> torch.nn.Threshold(0.0, float("nan")).eval()(torch.zeros(3))
    tensor([0., 0., 0.])
    """
'''
}


@pytest.mark.parametrize("explain", ["", "rerun"])
def test_doctest(pytester, explain):
    """Examples are tests: one that trains on NaN, or makes it unsaid, fails; NaN in what is expected is meant."""
    pytester.makepyfile(**DOCTESTS)
    options = ("lib.py", "--doctest-modules", "--nanstab-report=r.json", "-o", f"nanstab_explain={explain}")
    ran = run_inside(pytester, "", *options, "--nanstab")
    assert ran.outcomes == {
        "lib": "failed",
        "lib.healthy": "passed",
        "lib.makes_nan": "failed",
        "lib.shows_nan": "passed",
        "lib.wrong_itself": "failed",
    }
    assert kinds_in(pytester) == {
        "lib": ["nonfinite-loss"],
        "lib.healthy": [],
        "lib.makes_nan": ["nonfinite-output"],
        "lib.shows_nan": [],
        "lib.wrong_itself": ["nonfinite-output"],
    }
    assert '  again     pytest --nanstab --doctest-modules "lib.py::lib.makes_nan"' in ran.lines
    assert not any("NameError" in line for line in ran.lines)
    assert again(pytester, *options).result.parseoutcomes() == {"passed": 4, "failed": 1}
