"""Hypothesis and the marker: examples are watched one by one, so what they find shrinks."""

from __future__ import annotations

import hypothesis
import pytest
from plugin_runs import again, run_inside

PRELUDE = """
from hypothesis import given, settings, strategies as st
from pytest_nanstab import assert_finite
from pytest_nanstab.strategies import TensorSpec, from_spec

# Inner sessions share this process: what another one has loaded is no parent of ours.
settings.register_profile("fixed", settings.get_profile("unhurried"), derandomize=True, database=None)
settings.load_profile("fixed")
"""
README_5 = f"""
{PRELUDE}
SPEC = {{"logits": TensorSpec(shape=("n", 3), min_value=-1e4, max_value=1e4),
        "target": TensorSpec(shape=("n",), dtype="int64", min_value=0, max_value=2)}}

def focal_loss(logits, target):
    p = torch.softmax(logits, dim=-1).gather(-1, target[:, None])
    return -((1 - p) ** 2 * torch.log(p)).mean()

def stable_loss(logits, target):
    log_p = torch.log_softmax(logits, dim=-1).gather(-1, target[:, None])
    return -((1 - log_p.exp()) ** 2 * log_p).mean()

@pytest.mark.nanstab
@settings(report_multiple_bugs=False)  # an Inf and a NaN are two
@given(from_spec(SPEC))
def test_focal_loss(batch): assert_finite(focal_loss(**batch))

@pytest.mark.nanstab
@given(from_spec(SPEC))
def test_stable_loss(batch): assert_finite(stable_loss(**batch))
"""


def test_generated_batches(pytester):
    """The README's use: the careless loss fails with a small example and our block, the careful one passes."""
    ran = run_inside(pytester, README_5)
    assert ran.outcomes == {"test_focal_loss": "failed", "test_stable_loss": "passed"}
    ran.result.stdout.re_match_lines(r"E +(Falsifying example|Failing test case): test_focal_loss\($")
    ran.result.stdout.re_match_lines(r"FAILED test_it.py::test_focal_loss - NonFiniteError: [Ii]nf in value")
    for stranger in ("pytest_nanstab/", "Warning"):
        assert stranger not in ran.text
    # Older releases explain a failure by lines of the standard library too.
    assert "Explanation" not in ran.text or hypothesis.__version_info__ < (6, 130)


# What a busy machine takes for an example is not the subject.
EXAMPLES = f"""
{PRELUDE}
from hypothesis import HealthCheck, settings
slow = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("patient", settings.get_profile("fixed"), **slow)
settings.load_profile("patient")

def loss_of(x):
    weight = nn.Parameter(torch.ones(()))
    return torch.log(weight * x)

@pytest.mark.nanstab
@given(st.floats(0.0, 8.0))
def test_only_at_the_end_of_an_example(x):
    loss_of(torch.tensor(x)).backward()

@pytest.mark.nanstab
@given(st.floats(1.0, 8.0))
def test_healthy(x):
    loss_of(torch.tensor(x)).backward()

@pytest.mark.nanstab(max_loss=3)
@given(st.integers(0, 1000))
def test_limit(x):
    loss = nn.Parameter(torch.tensor(float(x)))
    (loss * 1).backward()

@pytest.mark.nanstab
class TestMethods(unittest.TestCase):
    @given(st.integers(0, 3))
    def test_unittest(self, x):
        train(bad=x or None)

@given(st.floats(0.0, 8.0))
def test_unmarked(x):
    loss_of(torch.tensor(x)).backward()

def test_nothing_is_left_behind():
    for test in (test_healthy, test_limit, TestMethods.test_unittest):
        assert "nanstab" not in test.hypothesis.inner_test.__code__.co_filename
"""


def test_every_example_is_watched_by_itself(pytester):
    """What shows at the end of an example shrinks; unmarked tests are watched as a whole, when asked for."""
    ran = run_inside(pytester, EXAMPLES)
    assert ran.outcomes == {
        "test_only_at_the_end_of_an_example": "failed",
        "test_healthy": "passed",
        "test_limit": "failed",
        "TestMethods::test_unittest": "failed",
        "test_unmarked": "passed",
        "test_nothing_is_left_behind": "passed",
    }
    assert "    x=0.0," in ran.block("_ test_only_at_the_end_of_an_example _", "_ test_limit _")
    assert "    x=4," in ran.block("_ test_limit _", "_ TestMethods.test_unittest _")
    assert "    x=1," in ran.block("_ TestMethods.test_unittest _", "= nanstab =")
    assert again(pytester, "--nanstab").outcomes["test_unmarked"] == "failed"


def test_the_fixture_still_trips_the_health_check(pytester):
    """A function-scoped fixture under @given is Hypothesis' own error: the marker is the way, and it is quiet."""
    body = f"""
{PRELUDE}
@given(st.integers(0, 3))
def test_fixture(nanstab, x): pass

@pytest.mark.nanstab
@given(st.integers(0, 3))
def test_marker(x): pass
"""
    ran = run_inside(pytester, body)
    assert ran.outcomes == {"test_fixture": "failed", "test_marker": "passed"}
    assert "FailedHealthCheck" in ran.text


@pytest.mark.parametrize("profile", ["explain", "no-explain"])
def test_failures_with_several_causes(pytester, profile):
    """Hypothesis groups distinct failures: each keeps its message, and the record has them all."""
    phases = "" if profile == "explain" else ", phases=set(Phase) - {Phase.explain}"
    body = f"""
{PRELUDE}
from hypothesis import Phase

@pytest.mark.nanstab
@settings(max_examples=50{phases})
@given(st.integers(0, 10))
def test_two(x):
    if x > 5:
        raise ValueError("mine")
    if x > 2:
        train(bad=2)
"""
    ran = run_inside(pytester, body, "--nanstab-report=r.json")
    assert ran.outcomes == {"test_two": "failed"}
    assert "ValueError: mine" in ran.text
    assert "NaN in the loss at step 2" in ran.text
