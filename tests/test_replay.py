"""An explicit test that fails is run once more, traced: the report names the operation, and nothing else changes."""

from __future__ import annotations

import json

import pytest
from plugin_runs import again, run_inside

BROKEN = """
class Root(nn.Module):
    def forward(self, x):
        return torch.sqrt(x - x)  # here

def fit(model, x=None, steps=2):
    x = torch.randn(4, 3) if x is None else x
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

def network():
    return nn.Sequential(nn.Linear(3, 3), Root())
"""
RERUN = "  op         sqrt backward, float32[4, 3]: 12 of 12 values became"


def findings(pytester: pytest.Pytester) -> dict[str, list[dict]]:
    report = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))
    return {test["id"].rpartition("::")[2]: test["findings"] for test in report["tests"]}


def ran(pytester: pytest.Pytester, body: str, *arguments: str):
    return run_inside(pytester, BROKEN + body, "--nanstab-report=r.json", *arguments)


def test_fixtures_are_set_up_anew(pytester):
    """The rerun gets its own model and temporary folder, and every fixture ends as often as it began."""
    body = """
LOG = []
@pytest.fixture
def model():
    LOG.append("up")
    yield network()
    LOG.append("down")

@pytest.mark.nanstab
def test_broken(model, tmp_path):
    (tmp_path / "once").mkdir()
    fit(model)

def test_after():
    assert LOG == ["up", "down"] * 2
"""
    result = ran(pytester, body)
    assert result.outcomes == {"test_broken": "failed", "test_after": "passed"}
    (finding,) = findings(pytester)["test_broken"]
    assert (finding["op"], finding["module"]) == ("sqrt backward", "1")


def test_a_rerun_starts_from_the_same_random_numbers(pytester):
    """Seeded or not, the second run draws what the first has drawn; the test after draws as if there had been one."""
    body = """
import random, numpy
DRAWN = []
@pytest.fixture(autouse=True)
def drawn():
    DRAWN.append((random.random(), numpy.random.rand(), torch.rand(1).item()))

@pytest.mark.nanstab
def test_broken():
    DRAWN.append(torch.rand(1).item())
    fit(network())

def test_after():
    first, inside, second, inside_again, mine = DRAWN
    assert first == second and inside == inside_again
    assert mine != first
"""
    assert ran(pytester, body).outcomes == {"test_broken": "failed", "test_after": "passed"}


def test_a_shared_model_is_put_back(pytester):
    """A model of a wider scope is trained by the first run; the rerun gets it as it was before."""
    body = """
@pytest.fixture(scope="module")
def shared():
    model = nn.Linear(3, 3)
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

@pytest.mark.nanstab
def test_broken(shared):
    model, optimizer = shared
    for step in range(3):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().mean()
        if step == 2:
            loss = loss / (loss - loss)
        loss.backward()
        optimizer.step()

def test_after(shared):
    assert shared[0].weight.isfinite().all()
"""
    assert ran(pytester, body).outcomes == {"test_broken": "failed", "test_after": "passed"}
    (finding,) = findings(pytester)["test_broken"]
    assert (finding["step"], finding["op"]) == (3, "div")
    assert "note" not in finding["evidence"]


def test_classes_of_unittest(pytester):
    """setUp and tearDown surround both runs."""
    body = """
CALLS = []
@pytest.mark.nanstab
class TestOld(unittest.TestCase):
    def setUp(self):
        CALLS.append("up")
        self.model = network()
    def tearDown(self): CALLS.append("down")
    def test_broken(self): fit(self.model)

def test_after(): assert CALLS == ["up", "down"] * 2
"""
    assert ran(pytester, body).outcomes == {"TestOld::test_broken": "failed", "test_after": "passed"}
    assert findings(pytester)["test_broken"][0]["op"] == "sqrt backward"


def test_a_rerun_that_hypothesis_refuses_says_so(pytester):
    """It wants the same TestCase, which a rerun makes anew: no word of a test that is not deterministic."""
    body = """
from hypothesis import given, settings, strategies as st
@pytest.mark.nanstab
class TestOld(unittest.TestCase):
    @settings(max_examples=5, database=None, deadline=None)
    @given(st.integers(0, 3))
    def test_broken(self, value): fit(network())
"""
    assert ran(pytester, body).outcomes == {"TestOld::test_broken": "failed"}
    (found,) = findings(pytester)["test_broken"]
    assert found["op"] is not None or "ended in" in found["evidence"]["note"]


def test_examples_of_hypothesis(pytester):
    """The smallest failing example is repeated, not the search."""
    body = """
from hypothesis import given, settings, strategies as st
@pytest.mark.nanstab
@settings(max_examples=30, database=None)
@given(st.floats(-4, 4, width=32))
def test_found(value):
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    (weight * torch.log(torch.tensor(value).relu() + 0.0)).sum().backward()
    optimizer.step()
"""
    result = ran(pytester, body)
    assert result.outcomes == {"test_found": "failed"}
    (finding,) = findings(pytester)["test_found"]
    assert finding["op"] == "log"
    assert "value=0.0," in result.text


def test_output_and_warnings_of_the_rerun_are_not_shown(pytester):
    """What the test prints and warns stands once in its report."""
    body = """
import warnings
@pytest.mark.nanstab
def test_broken():
    print("said", "once")
    warnings.warn("warned once", UserWarning)
    fit(network())
"""
    result = ran(pytester, body, "-W", "default")
    assert result.text.count("said once") == 1
    assert result.text.count("UserWarning: warned once") == 1


def test_a_test_that_differs_says_so(pytester):
    """A rerun that stays finite explains nothing, and one that takes another course says that it did."""
    body = """
RUNS = []
@pytest.mark.nanstab
def test_once():
    RUNS.append(1)
    fit(network() if len(RUNS) == 1 else nn.Linear(3, 1))

COURSES = []
@pytest.mark.nanstab
def test_other_course():
    COURSES.append(1)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        optimizer.zero_grad()
        loss = model(torch.full((2, 3), float(len(COURSES)))).square().mean()
        (loss if step < 2 else loss / 0.0).backward()
        optimizer.step()
"""
    ran(pytester, body)
    found = findings(pytester)
    assert "not deterministic" in found["test_once"][0]["evidence"]["note"]
    assert "took another course (loss at step 1" in found["test_other_course"][0]["evidence"]["note"]
    assert found["test_other_course"][0]["op"] == "div"


def test_a_teardown_that_raises_is_reported_once(pytester):
    """The end of the first run's fixtures belongs to the test's own teardown."""
    body = """
@pytest.fixture
def model():
    yield network()
    raise OSError("could not clean up")

@pytest.mark.nanstab
def test_broken(model): fit(model)
"""
    result = ran(pytester, body)
    assert result.result.parseoutcomes() == {"failed": 1, "errors": 1}
    assert result.text.count("E       OSError: could not clean up") == 1


def test_caught_and_known_failures(pytester):
    """xfail sees the same exception; what a test has caught is not run again."""
    body = """
RUNS = []
@pytest.mark.nanstab
@pytest.mark.xfail(raises=NonFiniteError, strict=True)
def test_known(): fit(network())

@pytest.mark.nanstab
def test_caught():
    RUNS.append(1)
    with pytest.raises(NonFiniteError):
        fit(network())

def test_after(): assert len(RUNS) == 1
"""
    assert ran(pytester, body).outcomes == {"test_known": "xfail", "test_caught": "passed", "test_after": "passed"}
    assert findings(pytester)["test_known"][0]["op"] == "sqrt backward"


@pytest.mark.parametrize(
    ("how", "runs", "op"), [("rerun", 2, "sqrt backward"), ("local", 1, "sqrt backward"), ("off", 1, None)]
)
@pytest.mark.parametrize("mark", ["@pytest.mark.nanstab", ""], ids=["explicit", "watched"])
def test_nanstab_explain(pytester, how, runs, op, mark):
    """The ini key chooses between a second run, a repetition on the spot, and neither."""
    body = f"""
RUNS = []
{mark}
def test_broken():
    RUNS.append(1)
    fit(network())

def test_after(): assert len(RUNS) == {runs}
"""
    result = ran(pytester, body, "--nanstab", "-o", f"nanstab_explain={how}")
    assert result.outcomes == {"test_broken": "failed", "test_after": "passed"}
    assert findings(pytester)["test_broken"][0]["op"] == op


def test_the_default_depends_on_who_asked(pytester):
    """Explicit tests run twice, others once."""
    body = """
RUNS = []
@pytest.mark.nanstab
def test_explicit():
    RUNS.append("explicit")
    fit(network())
def test_watched():
    RUNS.append("watched")
    fit(network())
def test_after(): assert RUNS == ["explicit", "explicit", "watched"]
"""
    assert ran(pytester, body, "--nanstab").outcomes["test_after"] == "passed"


def test_an_assertion_of_the_users_gets_the_origin(pytester):
    """A NaN that the test's own assertion has met is followed back, marked or not; the twin's infinity is meant."""
    body = """
def head(x):
    return x / x.sum()  # here

@pytest.mark.nanstab
def test_marked():
    out = head(torch.zeros(3))
    assert not torch.isnan(out).any()

def test_watched():
    out = {"logits": head(torch.zeros(3))}
    assert out["logits"].isfinite().all()

def test_meant():
    mask = torch.zeros(2).masked_fill(torch.tensor([True, False]), float("-inf"))
    assert mask.sum() == 0
"""
    result = ran(pytester, body, "--nanstab")
    assert set(result.outcomes.values()) == {"failed"}
    found = findings(pytester)
    for name in ("test_marked", "test_watched"):
        (finding,) = found[name]
        assert (finding["op"], finding["source"]) == ("div", "test_it.py:39")
    assert found["test_meant"] == []


@pytest.mark.slow
def test_under_xdist(pytester):
    """A worker explains what it ran."""
    pytest.importorskip("xdist")
    result = ran(pytester, "@pytest.mark.nanstab\ndef test_broken(): fit(network())\n", "-n", "1")
    assert "born in 1" in result.text


def test_suites_repeat_their_training(pytester):
    """The item that owns the fault names the operation; the factory is called once more for it."""
    body = """
CALLS = []
@stability_suite(checks=["finite_steps", "finite_eval", "adversarial_batches"])
def test_model():
    CALLS.append(1)
    model = network()
    return TrainingSetup(
        model=model, loss=lambda m, b: m(b).mean(), optimizer=torch.optim.SGD(model.parameters(), 0.1),
        batches=[torch.ones(2, 3)],
    )
def test_after(): assert len(CALLS) == 2
"""
    result = ran(pytester, body)
    assert result.outcomes["test_model[finite_steps-32-true]"] == "failed"
    assert result.outcomes["test_after"] == "passed"
    (finding,) = findings(pytester)["test_model[finite_steps-32-true]"]
    assert (finding["op"], finding["step"], finding["evidence"]["batch"]) == ("sqrt backward", 1, 1)
    assert again(pytester, "-o", "nanstab_explain=off").outcomes["test_after"] == "failed"
